"""One node's tracking in a panel of its page, with its switch."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from portal.nodes.views import NodeChange, NodeView
from portal.tracking.views import TrackingView
from portal.web.components import Moment, Tag, Toggle, empty, panel
from portal.web.visit import Visit

SUMMARY_LENGTH = 120


class TrackingPanel:
    """What a node's services told with Track, newest first, each with all of it to unfold.

    Args:
        change: carries a change of the node out.
    """

    def __init__(self, visit: Visit, *, on: bool, change: Callable[[NodeChange], Awaitable[None]]) -> None:
        self._visit = visit
        self._change = change
        self._on = on
        self._shown: tuple[bool, list[TrackingView]] | None = None
        self._panel = Tag("div")
        with self._panel, panel("Tracking", flush=True) as aside:
            with aside:
                self._switch = Toggle("Keep records", on, on_change=self._switched)
                self._switch.enable(visit.may("operator"))
            self._list = Tag("div", "", "list rows-faults")

    def show(self, node: NodeView, records: Sequence[TrackingView]) -> None:
        """Draw the records, unless they are what is shown, and follow the node's switch."""
        self._on = node.tracking
        if self._switch.value != node.tracking:
            self._switch.value = node.tracking
        # Who cannot turn it on needs no place for nothing.
        self._panel.visible = node.tracking or bool(records) or self._visit.may("operator")
        if self._shown == (node.tracking, list(records)):
            return
        self._shown = (node.tracking, list(records))
        self._list.clear()
        with self._list:
            if not records and node.tracking:
                empty("No record yet.", "What services pass to Track comes here by itself, also after an outage.")
            elif not records:
                empty(
                    "Tracking is off.",
                    "Services say with Track what passed through their hands: a batch, a ticket, a delivery. While "
                    "this is on, the portal keeps every such record; while it is off, Track sends nothing.",
                )
            for record in records:
                self._record(record)

    def _record(self, shown: TrackingView) -> None:
        with Tag("div", "", "row"):
            Tag("span", f"{shown.sequence}", "data muted small")
            with Tag("div", "").style("min-width: 0"):
                Tag("div", summary(shown.record), "row-title clip")
                Tag("div", shown.service, "muted small")
                with Tag("details", "", "fold small"):
                    Tag("summary", "Record")
                    Tag("pre", json.dumps(shown.record, indent=2, ensure_ascii=False), "trace", tabindex="0")
            with Tag("span", "", "muted small"):
                Moment(shown.at)

    async def _switched(self, event: Any) -> None:
        on = bool(event.value)
        if on == self._on:
            return
        await self._visit.acting(lambda: self._change(NodeChange(tracking=on)))()


def summary(record: dict[str, Any]) -> str:
    """One line for a record: its description, its message, or its first fields."""
    for key in ("description", "message", "text"):
        if isinstance(value := record.get(key), str) and value.strip():
            return value.strip().splitlines()[0][:SUMMARY_LENGTH]
    fields = (f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in record.items())
    return " · ".join(fields)[:SUMMARY_LENGTH] or "Empty record"
