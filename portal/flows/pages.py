"""The list of flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from portal.bus import Event, catalog_topic, nodes_topic
from portal.flows.editor import flow_page as flow_page  # registers the pages of one flow
from portal.flows.views import FlowView
from portal.web.components import Button, Moment, Tag, TextField, Toggle, empty
from portal.web.shell import page, page_head
from portal.web.visit import Visit

ROWS = 100


@page("/flows", title="Flows", section="flows")
async def flows_page(visit: Visit) -> None:
    """All flows."""
    shown = FlowsShown(visit)
    organization = visit.caller.organization_id
    await visit.watch(catalog_topic(organization), nodes_topic(organization), then=shown.happened)
    await shown.refresh()


class FlowsShown:
    """The list, drawn again when a flow has changed."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._makes = visit.may("operator")
        self._drawn: list[FlowView] | None = None
        with page_head("Flows", lead="Which services run where, and with which values."):
            if self._makes:
                Button("New flow", to="/flows/new", kind="primary", drawing="plus")
        with Tag("section", "", "panel", aria_label="Flows"):
            with Tag("div", "", "console-bar"), Tag("div", "", "grow"):
                self._search = TextField(
                    "Search flows",
                    placeholder="Search flows",
                    label_hidden=True,
                    type="search",
                    on_change=self._narrowed,
                )
            self._list = Tag("div", "", "list rows-flows")

    async def happened(self, events: Sequence[Event]) -> None:
        """Show what changed."""
        await self.refresh()

    async def refresh(self) -> None:
        """Read the list again and draw it if it differs."""
        async with self._visit.reading() as work:
            flows = (await work.flows.list(search=self._search.value.strip(), limit=ROWS)).items
        if flows == self._drawn:
            return
        self._drawn = flows
        self._list.clear()
        with self._list:
            self._draw(flows)

    async def _narrowed(self, _: Any) -> None:
        await self._visit.acting(self.refresh)()

    def _draw(self, flows: Sequence[FlowView]) -> None:
        if not flows:
            if self._search.value.strip():
                empty("No flow matches.", "Search for something else.")
                return
            with empty("No flow yet.", "A flow assigns services to nodes: by a node's name, by a tag, or to all."):
                if self._makes:
                    Button("New flow", to="/flows/new", kind="primary", drawing="plus")
            return
        with Tag("div", "", "row row-head", aria_hidden="true"):
            for title in ("Name", "Services", "State", "Changed"):
                Tag("span", title)
        for flow in flows:
            self._row(flow)

    def _row(self, flow: FlowView) -> None:
        with Tag("div", "", "row"):
            with Tag("div", "", "clip"):
                Tag("a", flow.name, "row-title link clip", href=f"/flows/{flow.id}")
                if flow.description:
                    Tag("div", flow.description.splitlines()[0], "muted small clip")
            with Tag("div", "", "second stack").style("gap: 2px"):
                for activity in flow.activities[:4]:
                    nodes = f"{activity.nodes} node{'' if activity.nodes == 1 else 's'}"
                    with Tag("div", "", "small clip"):
                        Tag("span", activity.service_name)
                        Tag("span", f" on {activity.host}, {nodes}", "muted")
                if len(flow.activities) > 4:
                    Tag("span", f"and {len(flow.activities) - 4} more", "muted small")
                if not flow.activities:
                    Tag("span", "No service in it yet", "muted small")

            async def switched(event: Any) -> None:
                if event.value != flow.enabled:
                    await self._visit.acting(lambda: self._switch(flow, event.value))()

            Toggle(
                f"{flow.name} is on" if flow.enabled else f"{flow.name} is off",
                flow.enabled,
                bare=True,
                on_change=switched,
            ).enable(self._makes)
            with Tag("span", "", "muted small wide-only"):
                Moment(flow.updated_at)

    async def _switch(self, flow: FlowView, enabled: bool) -> None:
        async with self._visit.writing() as work:
            await work.flows.set_enabled(flow.id, enabled)
