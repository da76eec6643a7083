"""The page of one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nicegui import ui
from pydantic import SecretStr

from portal.bus import Event, catalog_topic, console_topic, nodes_topic
from portal.console.feed import ConsoleFeed
from portal.faults.panel import FaultList
from portal.flows.views import FlowView
from portal.hub.views import CommandName
from portal.nodes.readings import READINGS, readings_of, text_of
from portal.nodes.status import presence, service_mark
from portal.nodes.views import (
    AssignedServiceView,
    IotHubForm,
    NodeChange,
    NodeDetail,
    NodeEventView,
    ServiceStateView,
)
from portal.tracking.panel import TrackingPanel
from portal.web.components import (
    Button,
    Chart,
    Dialog,
    Drawing,
    Drawn,
    Moment,
    Tag,
    TextField,
    Toggle,
    confirm,
    empty,
    panel,
    status,
    tell,
)
from portal.web.header40 import LEGEND, drawing, pins_of
from portal.web.icons import MarkKind, mark
from portal.web.shell import page, page_head
from portal.web.visit import Visit

EVENT_MARKS: dict[str, MarkKind] = {
    "enrolled": "good",
    "online": "good",
    "offline": "idle",
    "deployment": "busy",
    "fault": "fault",
    "changed": "off",
    "command": "off",
}
COMMANDS: dict[CommandName, tuple[str, str]] = {
    "ping": ("Ping", "Asks whether it answers, and how fast."),
    "report_state": ("Report state", "Asks what it runs and what it has not sent yet."),
    "restart_com": ("Reconnect", "Ends its connection to the cloud and makes a new one."),
    "restart": ("Restart", "Stops the agent with its services and starts them again."),
}


@page("/nodes/{node_id}", title="Node", section="nodes")
async def node_page(visit: Visit, node_id: str) -> None:
    """Everything about one node, live."""
    async with visit.reading() as work:
        node = await work.nodes.get(node_id)
    ui.page_title(f"{node.name} · Outstation")
    shown = NodeShown(visit, node)
    organization = visit.caller.organization_id
    await visit.watch(nodes_topic(organization), catalog_topic(organization), then=shown.happened)
    await visit.watch(console_topic(organization), then=shown.console.happened, pace_seconds=0)
    await shown.refresh()
    await shown.console.load()


class NodeShown:
    """The parts of the page, each drawn again only when what it shows has changed."""

    def __init__(self, visit: Visit, node: NodeDetail) -> None:
        self._visit = visit
        self._id = node.id
        self._node = node
        self._drawn = Drawn()
        self._charts: dict[str, Chart] = {}
        self._operates = visit.may("operator")
        with page_head(node.name, crumb=("Nodes", "/nodes")) as head:
            self._heading = head.under
            if self._operates:
                self._enabled = Toggle("Enabled", node.enabled, on_text="", off_text="", on_change=self._switch_enabled)
                Button("Commands", self._commands)
                Button("Restart", visit.acting(lambda: self._command("restart")), drawing="restart")
        self._trouble = Tag("div", "", "above")
        with Tag("div", "", "columns"):
            with Tag("div", "", "stack stack-wide"):
                with panel("Services", flush=True):
                    self._services = Tag("div", "", "list rows-states")
                with panel("Machine", flush=True) as aside:
                    with aside, Tag("span", "", "muted small"):
                        self._measured = Moment(None, never="")
                    self._machine = Tag("div")
                self.console = ConsoleFeed(visit, node_id=node.id)
                with panel("Faults", flush=True):
                    self._faults = FaultList(node_names=False)
                self._tracking = TrackingPanel(visit, on=node.tracking, change=self._change)
                with panel("Timeline", flush=True):
                    self._timeline = Tag("ol", "", "timeline", tabindex="0", aria_label="Timeline")
            with Tag("div", "", "stack stack-wide"):
                with panel("Pins"):
                    self._pins = Tag("div", "", "stack")
                with panel("Details"):
                    self._details = Tag("dl", "", "facts")
                with panel("Tags"):
                    self._tags = Tag("div", "", "stack stack-tight")
                with panel("Azure IoT Hub"):
                    self._hub = Tag("div", "", "stack")
                if visit.may("owner"):
                    with panel("Remove"), Tag("div", "", "stack"):
                        Tag("p", "The portal forgets the node and ends its connection. It must enrol again.", "muted")
                        with Tag("div"):
                            Button("Delete this node", visit.acting(self._delete), kind="danger", drawing="trash")

    async def happened(self, events: Sequence[Event]) -> None:
        """Show what concerns this node."""
        for event in events:
            if event.data.get("node_id", self._id) == self._id:
                if event.data.get("change") == "deleted":
                    tell("This node was deleted.", fault=True)
                    ui.navigate.to("/nodes")
                    return
                await self.refresh()
                return

    async def refresh(self) -> None:
        """Read the node again and draw what differs."""
        async with self._visit.reading() as work:
            node = await work.nodes.get(self._id)
            events = (await work.nodes.events(self._id, limit=50)).items
            faults = (await work.faults.list(node_id=self._id, limit=20)).items
            tracking = (await work.tracking.list(node_id=self._id, limit=20)).items
            flows = (await work.flows.list(limit=200)).items
            known = [each.tag for each in await work.nodes.tags()]
        self._node = node
        seen = None if node.online else node.last_seen_at
        draw = self._drawn.show
        draw(self._heading, (presence(node), node.presence_since, seen), self._draw_heading)
        trouble = (node.deployment_state, node.deployment_error, node.enabled, node.online)
        draw(self._trouble, trouble, self._draw_trouble)
        draw(self._services, (node.services, node.assigned, node.online), self._draw_services)
        draw(self._details, self._details_of(node), self._draw_details)
        draw(self._tags, (node.tags, known), lambda: self._draw_tags(known))
        draw(self._hub, node.iot_hub, self._draw_hub)
        draw(self._timeline, events, lambda: self._draw_timeline(events))
        used = pins_in_use(node.assigned, flows)
        draw(self._pins, used, lambda: self._draw_pins(used))
        self._faults.show(faults)
        self._tracking.show(node, tracking)
        self._draw_machine()
        self.console.node_changed(node)
        if self._operates and self._enabled.value != node.enabled:
            self._enabled.value = node.enabled

    def _draw_heading(self) -> None:
        node = self._node
        status(*presence(node))
        with Tag("span", "", "muted small"):
            if node.online and node.presence_since:
                Tag("span", "since ")
                Moment(node.presence_since, "full")
            else:
                Tag("span", "last seen ")
                Moment(node.last_seen_at)

    def _draw_trouble(self) -> None:
        node = self._node
        if not node.enabled:
            Tag(
                "p",
                "This node is disabled: it stays connected and runs no service. Enable it above.",
                "notice notice-warn",
            )
        if node.deployment_state == "failed":
            with Tag("div", "", "notice notice-fault"):
                Tag("div", "The newest deployment failed; the node went on with what it ran before.", "row-title")
                Tag("div", node.deployment_error, "data")
        elif node.deployment_state in ("pending", "staged") and node.online:
            Tag("p", "A deployment is on its way to the node.", "notice notice-calm")

    def _draw_services(self) -> None:
        node = self._node
        assigned = {each.id: each for each in node.assigned}
        reported = {each.id: each for each in node.services}
        if not assigned and not reported:
            with empty(
                "No service runs here.",
                "A flow says which services run where: by the node's name, by a tag, or on all nodes.",
            ):
                Button("Make a flow", to=f"/flows/new?host={node.name}", kind="primary", drawing="plus")
            return
        for service_id in sorted(assigned | reported):
            self._service(service_id, assigned.get(service_id), reported.get(service_id))

    def _service(self, service_id: str, wanted: AssignedServiceView | None, running: ServiceStateView | None) -> None:
        kind, word = service_mark(running.state) if running and self._node.online else ("idle", "not reported")
        with Tag("div", "", "row"):
            with Tag("div", "", "clip"):
                if wanted:
                    Tag("a", wanted.file, "row-title link clip", href=f"/services/{service_id}")
                    Tag("div", f"by flow {wanted.flow}, on {wanted.host}", "muted small clip")
                else:
                    Tag("span", service_id, "row-title clip")
                    Tag("div", "no longer assigned", "muted small")
            Tag("span", running.version if running else (wanted.version if wanted else "–"), "data wide-only")
            status(kind, word)
            with Tag("span", "", "muted small second"):
                if running and running.since:
                    Moment(running.since)
            if running and running.fault:
                with Tag("details", "", "fold").style("grid-column: 1 / -1"):
                    Tag("summary", running.fault.strip().splitlines()[-1], "small")
                    Tag("pre", running.fault, "trace", tabindex="0")

    def _draw_machine(self) -> None:
        readings = readings_of(self._node.facts)
        at = self._node.facts_at
        if at is None or not readings:
            self._drawn.show(self._machine, "nothing", self._draw_nothing_measured)
            return
        self._drawn.show(self._machine, sorted(readings), lambda: self._draw_charts(at, readings))
        self._measured.show(at)
        for name, chart in self._charts.items():
            chart.push(at.timestamp(), readings[name])

    def _draw_nothing_measured(self) -> None:
        empty("No measurement yet.", "An online node measures itself when it signs in and each minute.")

    def _draw_charts(self, at: datetime, readings: Mapping[str, float]) -> None:
        with Tag("div", "", "charts"):
            self._charts = {
                each.name: Chart(
                    each.label,
                    each.unit,
                    top=each.top,
                    digits=each.digits,
                    points=[(at.timestamp(), readings[each.name])],
                )
                for each in READINGS
                if each.name in readings
            }

    def _details_of(self, node: NodeDetail) -> list[tuple[str, str, bool]]:
        agent = node.agent_version + (" (original)" if node.kind == "original" else "")
        details = [
            ("Machine", node.machine_name, False),
            ("Board", text_of(node.facts, "model"), False),
            ("System", text_of(node.facts, "operatingSystem") or node.platform, False),
            ("Agent", agent, True),
            ("Python", text_of(node.facts, "python"), True),
            ("Addresses", ", ".join(node.ip_addresses), True),
            ("MAC", ", ".join(node.mac_addresses), True),
            ("Deployment", f"{node.deployment[:12]} {node.deployment_state}" if node.deployment else "", True),
            ("Node id", node.id, True),
        ]
        return [(label, value, mono) for label, value, mono in details if value.strip()]

    def _draw_details(self) -> None:
        for label, value, mono in self._details_of(self._node):
            Tag("dt", label)
            Tag("dd", value, "data" if mono else "")
        Tag("dt", "Added")
        with Tag("dd"):
            Moment(self._node.created_at, "full")

    def _draw_tags(self, known: list[str]) -> None:
        tags = self._node.tags
        if tags:
            with Tag("div", "", "line").style("gap: 6px"):
                for each in tags:
                    with Tag("span", "", "tag"):
                        Tag("span", f"#{each}")
                        if self._operates:
                            Tag("button", "×", "tag-x", type="button", aria_label=f"Remove tag {each}").on(
                                "click", self._visit.acting(self._without(each)), []
                            )
        else:
            Tag("p", "No tag. Flows can run on all nodes with a tag.", "muted")
        if self._operates:
            with Tag("form", "", "line").on("submit.prevent", self._visit.acting(self._add_tag), []):
                with Tag("div", "", "grow"):
                    self._new_tag = TextField(
                        "New tag",
                        placeholder="Add a tag",
                        label_hidden=True,
                        suggestions=[t for t in known if t not in tags],
                    )
                Button("Add", submit=True)

    def _without(self, tag: str) -> Any:
        async def remove() -> None:
            await self._change(NodeChange(tags=[each for each in self._node.tags if each != tag]))

        return remove

    async def _add_tag(self) -> None:
        tag = self._new_tag.value.strip().removeprefix("#")
        if tag and tag not in self._node.tags:
            await self._change(NodeChange(tags=[*self._node.tags, tag]))

    def _draw_hub(self) -> None:
        if self._node.iot_hub:
            with Tag("dl", "", "facts"):
                Tag("dt", "Device")
                Tag("dd", self._node.iot_hub, "data")
        else:
            Tag("p", "Not set: what services submit waits in the node's outbox until a cloud is set.", "muted")
        if self._operates:
            with Tag("div", "", "line"):
                Button("Replace" if self._node.iot_hub else "Set connection string", self._set_hub, small=True)
                if self._node.iot_hub:
                    Button("Remove", self._visit.acting(self._clear_hub), kind="plain", small=True)

    def _draw_timeline(self, events: list[NodeEventView]) -> None:
        if not events:
            with Tag("li"):
                empty("Nothing has happened yet.", "")
        for event in events:
            with Tag("li", "", "event"):
                kind = EVENT_MARKS.get(event.kind, "off")
                Drawing(mark(kind), f"mark mark-{'idle' if kind == 'off' else kind}")
                Tag("span", event.text)
                with Tag("span", "", "muted small"):
                    Moment(event.at)

    def _draw_pins(self, used: Mapping[int, str]) -> None:
        ui.html(drawing(used), sanitize=False).classes("header40")
        with Tag("div", "", "legend"):
            for token, label in LEGEND:
                with Tag("span"):
                    Tag("span", "", "swatch").style(f"background: var(--{token})")
                    Tag("span", label)

    def _commands(self) -> None:
        dialog = Dialog("Commands")
        with dialog.body:
            rows = Tag("div", "", "stack stack-tight")
            answer = Tag("div", "", "stack stack-tight", role="status")
            with rows:
                for command, (label, text) in COMMANDS.items():
                    with Tag("div", "", "line line-apart line-nowrap"):
                        Tag("span", text, "muted")
                        Button(label, self._visit.acting(self._asking(command, answer)), small=True)
        dialog.open()

    def _asking(self, command: CommandName, answer: Tag) -> Any:
        async def ask() -> None:
            result = await self._visit.portal.hub.command(await self._visit.caller_now(), self._id, command)
            answer.clear()
            with answer:
                Tag(
                    "p",
                    f"{COMMANDS[command][0]}: {result.text or result.outcome} ({result.milliseconds} ms)",
                    "notice notice-calm",
                )
                if result.result:
                    Tag("pre", "\n".join(f"{key}: {value}" for key, value in result.result.items()), "trace")

        return ask

    async def _command(self, command: CommandName) -> None:
        result = await self._visit.portal.hub.command(await self._visit.caller_now(), self._id, command)
        tell(result.text or f"{COMMANDS[command][0]}: {result.outcome}.", fault=result.outcome == "refused")

    async def _switch_enabled(self, event: Any) -> None:
        if event.value == self._node.enabled:
            return

        async def switch() -> None:
            await self._change(NodeChange(enabled=event.value))

        await self._visit.acting(switch)()
        self._enabled.value = self._node.enabled

    async def _change(self, change: NodeChange) -> None:
        async with self._visit.writing() as work:
            self._node = await work.nodes.change(self._id, change)

    def _set_hub(self) -> None:
        dialog = Dialog("Azure IoT Hub", wide=True)
        with dialog.body:
            Tag("p", "Stored encrypted, sent to this node alone, and never shown again.", "muted")
            text = TextField(
                "Connection string",
                placeholder="HostName=…;DeviceId=…;SharedAccessKey=…",
                mono=True,
                type="password",
                hint="Of the device, from the Azure portal or from the local emulator.",
            )
            authority = TextField(
                "Certificate authority",
                rows=4,
                mono=True,
                hint="Optional: PEM of a private authority, as the emulator's.",
            )

        async def save() -> None:
            async with self._visit.writing() as work:
                form = IotHubForm(connection_string=SecretStr(text.value), certificate_authority=authority.value)
                await work.nodes.set_iot_hub(self._id, form)
            dialog.close()
            await self.refresh()
            tell("Stored; the node connects by itself.")

        with dialog.foot:
            Button("Cancel", dialog.close)
            Button("Store", self._visit.acting(save), kind="primary")
        dialog.open()

    async def _clear_hub(self) -> None:
        if await confirm(
            "Remove the connection string?", "The node keeps its readings until there is another.", "Remove"
        ):
            async with self._visit.writing() as work:
                await work.nodes.clear_iot_hub(self._id)
            await self.refresh()

    async def _delete(self) -> None:
        if await confirm(
            f"Delete {self._node.name}?",
            "Its history goes too. What it runs stops when it notices that it must enrol again.",
            "Delete this node",
        ):
            async with self._visit.writing() as work:
                await work.nodes.delete(self._id)
            ui.navigate.to("/nodes")


def pins_in_use(assigned: Sequence[AssignedServiceView], flows: Sequence[FlowView]) -> dict[int, str]:
    """Which service of a node has which BCM number, by the values that the flows give to its properties."""
    used: dict[int, str] = {}
    by_name = {flow.name: flow for flow in flows}
    for service in assigned:
        flow = by_name.get(service.flow)
        for activity in flow.activities if flow and service.enabled else ():
            if activity.service_id == service.id and activity.host.lstrip("#") == service.host.lstrip("#"):
                for bcm in pins_of(activity.static):
                    used[bcm] = service.file.removesuffix(".py")
    return used
