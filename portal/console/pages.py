"""The console of all nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from portal.bus import Event, console_topic, nodes_topic
from portal.console.feed import as_row, lines_of
from portal.nodes.status import presence
from portal.nodes.views import NodeView
from portal.web.components import Button, ConsoleLines, Moment, Tag, Toggle, empty, panel, status
from portal.web.shell import page, page_head
from portal.web.visit import Visit

NODES = 200
"""So many nodes have a switch here; each node's page has its own."""


@page("/console", title="Console", section="console")
async def console_page(visit: Visit) -> None:
    """What the services of all nodes write, as they write it."""
    with page_head("Console", lead="What services write with Debug, Warning and ThrowError, as they write it."):
        pass
    shown = ConsoleShown(visit)
    await visit.watch(console_topic(visit.caller.organization_id), then=shown.wrote, pace_seconds=0)
    await visit.watch(nodes_topic(visit.caller.organization_id), then=shown.happened)
    await shown.load()


class ConsoleShown:
    """Lines of all nodes, and the switch of each."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._drawn: list[NodeView] | None = None
        self._any_line = False
        with Tag("div", "", "columns columns-console"):
            with Tag("section", "", "panel", aria_label="Console"):
                self._off = Tag("div")
                self._lines = ConsoleLines(nodes=True)
            with panel("Nodes", flush=True):
                self._nodes = Tag("div", "", "list rows-uses")

    async def load(self) -> None:
        """Show the lines that the portal still has, and the nodes."""
        async with self._visit.reading() as work:
            recent = work.console.recent(limit=500)
        self._any_line = bool(recent)
        self._lines.begin_with([as_row(line) for line in recent])
        await self._refresh()

    async def wrote(self, events: Sequence[Event]) -> None:
        """Show new lines."""
        if not self._any_line:
            self._any_line = True
            self._draw_off(self._drawn or [])
        self._lines.append(lines_of(events))

    async def happened(self, events: Sequence[Event]) -> None:
        """Show changed switches."""
        await self._refresh()

    async def _refresh(self) -> None:
        async with self._visit.reading() as work:
            nodes = (await work.nodes.list(limit=NODES)).items
        if nodes == self._drawn:
            return
        self._drawn = nodes
        self._draw_off(nodes)
        self._nodes.clear()
        with self._nodes:
            if not nodes:
                with empty("No node yet.", "Add one to see what it writes."):
                    Button("Go to the nodes", to="/nodes")
            for node in nodes:
                self._node(node)

    def _draw_off(self, nodes: Sequence[NodeView]) -> None:
        on = any(node.console for node in nodes) or self._any_line
        self._lines.visible = on
        self._off.visible = not on
        self._off.clear()
        if on:
            return
        with self._off:
            if not nodes:
                empty("Nothing to listen to yet.", "Nodes write here once they are added and their console is on.")
                return
            with empty(
                "The console is off on every node.",
                "Turn it on for a node at the side. It turns itself off after 30 minutes, so that nobody pays for "
                "lines that nobody reads.",
            ):
                first = next((node for node in nodes if node.online), nodes[0])
                if self._visit.may("operator"):
                    Button(f"Turn it on for {first.name}", self._visit.acting(self._turning(first, on=True)))

    def _node(self, node: NodeView) -> None:
        with Tag("div", "", "row"):
            with Tag("div", "", "clip"):
                Tag("a", node.name, "row-title link clip", href=f"/nodes/{node.id}")
                with Tag("div", "", "line small muted"):
                    status(*presence(node))
                    if node.console and node.console_until:
                        with Tag("span"):
                            Tag("span", "off in ")
                            Moment(node.console_until, "countdown", ended="a moment")

            async def switched(event: Any) -> None:
                if event.value != node.console:
                    await self._visit.acting(self._turning(node, on=event.value))()

            Toggle(f"Console of {node.name}", node.console, bare=True, on_change=switched).enable(
                self._visit.may("operator")
            )

    def _turning(self, node: NodeView, *, on: bool) -> Any:
        async def turn() -> None:
            async with self._visit.writing() as work:
                await work.console.switch(node.id, on=on)

        return turn
