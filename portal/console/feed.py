"""One node's console in a panel of its page, with its switch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from portal.bus import Event
from portal.console.views import ConsoleLine
from portal.nodes.views import NodeView
from portal.web.components import Button, ConsoleLines, Moment, Tag, Toggle, empty, panel
from portal.web.visit import Visit


def as_row(line: ConsoleLine) -> dict[str, Any]:
    """A line as the browser takes it."""
    return {
        "id": line.id,
        "time": line.time.timestamp(),
        "node": line.node,
        "service": line.service,
        "level": line.level,
        "text": line.text,
    }


def lines_of(events: Sequence[Event], node_id: str = "") -> list[dict[str, Any]]:
    """The console lines that came over the bus, of one node or of all, as the browser takes them."""
    lines = (ConsoleLine.model_validate(dict(event.data)) for event in events)
    return [as_row(line) for line in lines if not node_id or line.node_id == node_id]


class ConsoleFeed:
    """A node's console: its switch, what it wrote lately, and what it writes now."""

    def __init__(self, visit: Visit, *, node_id: str) -> None:
        self._visit = visit
        self._node_id = node_id
        self._until: datetime | None = None
        with panel("Console", flush=True) as aside:
            with aside:
                self._ends = Tag("span", "", "muted small")
                self._switch = Toggle("Send lines", on_change=self._switched)
                self._switch.enable(visit.may("operator"))
            self._off = empty(
                "The console is off.",
                "Turn it on to see what the services of this node write. It turns itself off after 30 minutes.",
            )
            if visit.may("operator"):
                with self._off:
                    Button("Turn it on", visit.acting(lambda: self._turn(on=True)))
            self._lines = ConsoleLines(nodes=False, limit=500).classes("console-short")
            self._lines.visible = False

    async def load(self) -> None:
        """Show what the portal still has of the node's lines."""
        async with self._visit.reading() as work:
            recent = work.console.recent(node=self._node_id, limit=200)
        if recent:
            self._lines.visible = True
            self._off.visible = False
            self._lines.begin_with([as_row(line) for line in recent])

    async def happened(self, events: Sequence[Event]) -> None:
        """Show new lines of this node."""
        if rows := lines_of(events, self._node_id):
            self._lines.visible = True
            self._off.visible = False
            self._lines.append(rows)

    def node_changed(self, node: NodeView) -> None:
        """Follow the node's switch."""
        if self._switch.value != node.console:
            self._switch.value = node.console
        if node.console:
            self._lines.visible = True
            self._off.visible = False
        if self._until != node.console_until:
            self._until = node.console_until
            self._ends.clear()
            if node.console and node.console_until:
                with self._ends:
                    Tag("span", "off in ")
                    Moment(node.console_until, "countdown", ended="a moment")

    async def _switched(self, event: Any) -> None:
        await self._visit.acting(lambda: self._turn(on=event.value))()

    async def _turn(self, *, on: bool) -> None:
        async with self._visit.reading() as work:
            if (await work.nodes.get(self._node_id)).console == on:
                return
        async with self._visit.writing() as work:
            await work.console.switch(self._node_id, on=on)
