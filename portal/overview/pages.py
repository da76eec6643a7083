"""The overview: the fleet as an annunciator panel, what needs attention, and a fresh portal's first steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from portal.bus import Event, catalog_topic, nodes_topic
from portal.faults.panel import FaultList
from portal.faults.views import FaultView
from portal.nodes.pages import add_node
from portal.nodes.status import condition
from portal.nodes.views import AnnouncementView, NodeCounts, NodeView
from portal.web.components import Button, Drawing, Drawn, Moment, Tag, empty, mark_only, panel, status
from portal.web.icons import MarkKind, icon
from portal.web.shell import page, page_head
from portal.web.visit import Visit
from portal.work import Work

FLEET_LIMIT = 200
"""So many nodes have a window, those in trouble first; the list of nodes has them all."""
TICKS = 40
"""At most so many in the bar below the number of nodes."""
_ORDER: dict[MarkKind, int] = {"fault": 0, "warn": 1, "busy": 2, "good": 3, "idle": 4, "off": 5}


@dataclass(frozen=True, slots=True)
class Picture:
    """What the overview shows, read in one transaction."""

    counts: NodeCounts
    nodes: list[NodeView]
    faults: list[FaultView]
    services: int
    flows: int
    running: bool
    """Whether some flow runs a service on some node."""
    announcements: list[AnnouncementView]

    @classmethod
    async def read(cls, work: Work) -> Picture:
        """Read it."""
        return cls(
            counts=await work.nodes.counts(),
            nodes=await work.nodes.fleet(limit=FLEET_LIMIT),
            faults=(await work.faults.list(limit=8)).items,
            services=await work.services.count(),
            flows=await work.flows.count(),
            running=await work.flows.runs_somewhere(),
            announcements=await work.nodes.announcements(),
        )

    @property
    def unseen(self) -> int:
        """How many nodes have no window."""
        return self.counts.nodes - len(self.nodes)


@page("/", title="Overview", section="overview")
async def overview_page(visit: Visit) -> None:
    """How the fleet is."""
    with page_head("Overview"):
        if visit.may("operator"):
            Button("Add a node", lambda: add_node(visit), drawing="plus")
    shown = OverviewShown(visit)
    organization = visit.caller.organization_id
    await visit.watch(nodes_topic(organization), catalog_topic(organization), then=shown.happened)
    await shown.refresh()


class OverviewShown:
    """The parts of the page, each drawn again only when what it shows has changed."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._drawn = Drawn()
        self._steps = Tag("div", "", "above")
        with Tag("div", "", "stack stack-wide"):
            with Tag("section", "", "panel", aria_label="Numbers"):
                self._numbers = Tag("div", "", "readouts")
            with panel("Fleet", flush=True):
                self._fleet = Tag("div", "", "annunciator")
            with Tag("div", "", "columns columns-even"):
                with panel("Needs attention", flush=True):
                    self._attention = Tag("div", "", "list rows-faults")
                with panel("Recent faults", flush=True):
                    self._faults = FaultList(node_names=True)

    async def happened(self, events: Sequence[Event]) -> None:
        """Show what changed."""
        await self.refresh()

    async def refresh(self) -> None:
        """Read everything again and draw what differs."""
        async with self._visit.reading() as work:
            now = await Picture.read(work)
        steps = (bool(now.counts.nodes), now.running, bool(now.counts.delivering))
        numbers = (now.counts, now.services, now.flows)
        fleet = ([(node.id, node.name, condition(node)) for node in now.nodes], now.unseen)
        attention = [node for node in now.nodes if condition(node)[0] in ("fault", "warn")]
        show = self._drawn.show
        show(self._steps, steps, lambda: self._draw_steps(*steps))
        show(self._numbers, numbers, lambda: self._draw_numbers(*numbers))
        show(self._fleet, fleet, lambda: self._draw_fleet(now))
        show(self._attention, (attention, now.announcements), lambda: self._draw_attention(attention, now))
        self._faults.show(now.faults)

    def _draw_steps(self, has_node: bool, runs: bool, delivers: bool) -> None:
        if has_node and runs and delivers:
            return
        with panel("First steps", flush=True), Tag("ol", "", "steps"):
            self._step(
                1, "Enrol a node", "Run one command on a Raspberry Pi.", done=has_node, next_one=not has_node,
                label="Add a node", act=lambda: add_node(self._visit),
            )  # fmt: skip
            self._step(
                2, "Assign a service", "Take ReadGPIO from the library, or write your own, and put it into a flow.",
                done=runs, next_one=has_node and not runs, label="Choose a service", to="/services",
            )  # fmt: skip
            self._step(
                3, "See readings", "Set the node's IoT Hub, and watch in the console what its services send there.",
                done=delivers, next_one=has_node and runs, label="Open the console", to="/console",
            )  # fmt: skip

    def _step(
        self,
        number: int,
        title: str,
        text: str,
        *,
        done: bool,
        next_one: bool,
        label: str,
        act: Any = None,
        to: str = "",
    ) -> None:
        with Tag("li", "", "step" + (" step-done" if done else " step-next" if next_one else "")):
            with Tag("span", "", "step-number", aria_hidden="true"):
                if done:
                    Drawing(icon("check"))
                else:
                    Tag("span", str(number))
            with Tag("div"):
                Tag("h3", f"{title}{' (done)' if done else ''}")
                Tag("p", text, "muted small")
            if not done:
                Button(label, act, kind="primary" if next_one else "", to=to)

    def _draw_numbers(self, counts: NodeCounts, services: int, flows: int) -> None:
        with self._number(f"{counts.online}", f"of {counts.nodes} nodes online", "/nodes?status=online"):
            shown = min(counts.nodes, TICKS)
            lit = round(shown * counts.online / counts.nodes) if counts.nodes else 0
            with Tag("span", "", "ticks", aria_hidden="true"):
                for place in range(shown):
                    Tag("span", "", "tick tick-on" if place < lit else "tick")
        self._number(str(counts.faults), "faults in 24 hours", "")
        self._number(str(services), "service" if services == 1 else "services", "/services")
        self._number(str(flows), "flow" if flows == 1 else "flows", "/flows")

    def _number(self, value: str, label: str, address: str) -> Tag:
        with Tag("a" if address else "div", "", "readout", href=address or None) as readout:
            Tag("span", value, "readout-value")
            Tag("span", label, "readout-label")
        return readout

    def _draw_fleet(self, now: Picture) -> None:
        if not now.nodes:
            with Tag("div", "", "annunciator-fill"):
                empty("No node yet.", "Each node gets a window here: quiet while all is well, lit when it is not.")
            return
        for node in sorted(now.nodes, key=lambda each: (_ORDER[condition(each)[0]], each.name)):
            kind, word = condition(node)
            with Tag("a", "", f"window window-{kind}", href=f"/nodes/{node.id}"):
                Tag("span", node.name, "window-name clip")
                status(kind, word)
        if now.unseen:
            with Tag("a", "", "window", href="/nodes"):
                Tag("span", f"and {now.unseen} more", "window-name clip")
                Tag("span", "in the list of nodes", "muted small")

    def _draw_attention(self, nodes: Sequence[NodeView], now: Picture) -> None:
        for each in now.announcements:
            with Tag("div", "", "row"):
                mark_only("busy", "waiting")
                with Tag("div"):
                    Tag("a", each.host_name, "row-title link", href="/nodes")
                    Tag("div", "waits to be claimed", "muted small")
                with Tag("span", "", "muted small"):
                    Moment(each.announced_at)
        for node in nodes:
            kind, word = condition(node)
            with Tag("div", "", "row"):
                mark_only(kind, word)
                with Tag("div", "", "clip"):
                    Tag("a", node.name, "row-title link clip", href=f"/nodes/{node.id}")
                    Tag("div", word, "muted small")
                with Tag("span", "", "muted small"):
                    Moment(node.last_seen_at if not node.online else node.presence_since)
        if not nodes and not now.announcements:
            if now.nodes:
                empty("All is well.", "Nodes that go offline, fail to deploy or report faults are named here.")
            else:
                empty("Nothing yet.", "Nodes that want to be looked at are named here.")
