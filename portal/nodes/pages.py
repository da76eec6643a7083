"""The list of nodes, and what it takes to add one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from portal.bus import Event, nodes_topic
from portal.nodes.detail import node_page as node_page  # registers the page of one node
from portal.nodes.status import presence
from portal.nodes.views import AnnouncementView, ClaimForm, NodeView, VerificationCodeForm, VerificationCodeView
from portal.web.components import (
    Button,
    Choice,
    CopyLine,
    Dialog,
    Moment,
    Tag,
    TextField,
    confirm,
    empty,
    panel,
    status,
    tag_list,
    tell,
)
from portal.web.shell import page, page_head
from portal.web.visit import Visit

ROWS = 50
Status = Literal["", "online", "offline", "disabled"]


@page("/nodes", title="Nodes", section="nodes")
async def nodes_page(visit: Visit, status: str = "") -> None:
    """All nodes, live."""
    with page_head("Nodes"):
        if visit.may("operator"):
            Button("Add a node", lambda: add_node(visit), kind="primary", drawing="plus")
    listing = NodeList(visit, status if status in ("online", "offline", "disabled") else "")
    await visit.watch(nodes_topic(visit.caller.organization_id), then=listing.happened)
    await listing.refresh()


class NodeRow:
    """One node of the list, drawn again only when it has changed."""

    def __init__(self, node: NodeView) -> None:
        self.node = node
        self._row = Tag("a", "", "row", href=f"/nodes/{node.id}")
        self._fill()

    def show(self, node: NodeView) -> None:
        """Show the node as it is now."""
        before, self.node = self.node, node
        if before == node:
            return
        if before.model_copy(update={"last_seen_at": node.last_seen_at}) == node and before.last_seen_at:
            self._seen.show(node.last_seen_at)
            return
        self._row.clear()
        self._fill()

    def _fill(self) -> None:
        node = self.node
        with self._row:
            with Tag("span", "", "stack clip").style("gap: 0"):
                Tag("span", node.name, "row-title clip")
                if node.machine_name and node.machine_name != node.name:
                    Tag("span", node.machine_name, "muted small clip")
            with Tag("span", "", "line"):
                status(*presence(node))
                if node.faults:
                    status("fault", f"{node.faults} fault{'' if node.faults == 1 else 's'}", "small")
            with Tag("span", "", "second"):
                if node.tags:
                    tag_list(node.tags)
            Tag("span", node.agent_version or "–", "data muted wide-only clip")
            with Tag("span", "", "muted small wide-only"):
                self._seen = Moment(node.last_seen_at)


class NodeList:
    """The list with its search."""

    def __init__(self, visit: Visit, status_wanted: str) -> None:
        self._visit = visit
        self._rows: list[NodeRow] = []
        self._limit = ROWS
        self._announced = Tag("div", "", "above")
        self._announced.visible = False
        with Tag("section", "", "panel", aria_label="Nodes"):
            with Tag("div", "", "console-bar"):
                with Tag("div", "", "console-filter"):
                    self._search = TextField(
                        "Search nodes",
                        placeholder="Search by name, tag or address",
                        label_hidden=True,
                        type="search",
                        on_change=self._narrowed,
                    )
                self._status = Choice(
                    "Status",
                    [("", "Any status"), ("online", "Online"), ("offline", "Offline"), ("disabled", "Disabled")],
                    status_wanted,
                    label_hidden=True,
                    on_change=self._narrowed,
                )
                self._tag = Choice("Tag", [("", "Any tag")], label_hidden=True, on_change=self._narrowed)
            self._list = Tag("div", "", "list rows-nodes")
            self._more = Tag("div", "", "line panel-body")
            with self._more:
                Button("Show more", visit.acting(self._show_more))
            self._more.visible = False

    async def happened(self, events: Sequence[Event]) -> None:
        """Show what changed on some nodes."""
        await self.refresh()

    async def refresh(self) -> None:
        """Read the list again and draw what differs."""
        async with self._visit.reading() as work:
            found = await work.nodes.list(
                search=self._search.value.strip(),
                tag=self._tag.value,
                status=cast(Status, self._status.value),
                limit=self._limit,
            )
            tags = await work.nodes.tags()
            announcements = await work.nodes.announcements()
        self._tag.offer([("", "Any tag"), *((each.tag, f"#{each.tag}") for each in tags)])
        self._draw(found.items)
        self._more.visible = found.next is not None
        self._draw_announcements(announcements)

    async def _narrowed(self, _: Any) -> None:
        self._limit = ROWS
        await self._visit.acting(self.refresh)()

    async def _show_more(self) -> None:
        self._limit += ROWS
        await self.refresh()

    def _draw(self, nodes: list[NodeView]) -> None:
        if nodes and [node.id for node in nodes] == [row.node.id for row in self._rows]:
            for row, node in zip(self._rows, nodes, strict=True):
                row.show(node)
            return
        self._list.clear()
        with self._list:
            if nodes:
                self._head()
            else:
                self._nothing()
            self._rows = [NodeRow(node) for node in nodes]

    def _head(self) -> None:
        with Tag("div", "", "row row-head", aria_hidden="true"):
            for title in ("Name", "Status", "Tags", "Agent", "Last seen"):
                Tag("span", title)

    def _nothing(self) -> None:
        if self._search.value.strip() or self._tag.value or self._status.value:
            empty("No node matches.", "Search for less, or choose another status or tag.")
            return
        with empty(
            "No node yet.",
            "A node is a Raspberry Pi, or any Linux machine, that runs the agent. Make a code here, run one command "
            "there, and it appears in this list by itself.",
        ):
            if self._visit.may("operator"):
                Button("Add a node", lambda: add_node(self._visit), kind="primary", drawing="plus")

    def _draw_announcements(self, announcements: list[AnnouncementView]) -> None:
        self._announced.clear()
        self._announced.visible = bool(announcements)
        with self._announced:
            if announcements:
                with panel("Machines that wait to be claimed", flush=True), Tag("div", "", "list rows-uses"):
                    for each in announcements:
                        self._announcement(each)

    def _announcement(self, each: AnnouncementView) -> None:
        with Tag("div", "", "row"):
            with Tag("div", "", "clip"):
                Tag("div", each.host_name, "row-title clip")
                Tag("div", " · ".join([each.ip_address, *each.mac_addresses[:1]]), "muted small data clip")
            if self._visit.may("operator"):
                with Tag("div", "", "line"):
                    claim = Button("Claim", lambda: self._claim(each), small=True)
                    claim.enable(each.connected)
                    Button("Dismiss", self._visit.acting(lambda: self._dismiss(each)), kind="plain", small=True)

    def _claim(self, each: AnnouncementView) -> None:
        dialog = Dialog(f"Claim {each.host_name}")
        with dialog.body:
            name = TextField("Name", value=each.host_name, hint="Letters, digits, dots, hyphens and underscores.")
            tags = TextField("Tags", placeholder="pumps, north", hint="Optional, separated by commas.")

        async def claim() -> None:
            async with self._visit.writing() as work:
                node = await work.nodes.claim(each.id, ClaimForm(name=name.value, tags=split_tags(tags.value)))
            dialog.close()
            tell(f"{node.name} is yours.")

        with dialog.foot:
            Button("Cancel", dialog.close)
            Button("Claim", self._visit.acting(claim), kind="primary")
        dialog.open()

    async def _dismiss(self, each: AnnouncementView) -> None:
        if await confirm(f"Dismiss {each.host_name}?", "It may announce itself again.", "Dismiss"):
            async with self._visit.writing() as work:
                await work.nodes.dismiss(each.id)


def split_tags(text: str) -> list[str]:
    """Tags as people type them: by commas or spaces, with or without `#`."""
    return [tag for part in text.replace(",", " ").split() if (tag := part.removeprefix("#"))]


async def add_node(visit: Visit) -> None:
    """Make a verification code, show the command for the node, and say so when the node has joined."""
    dialog = Dialog("Add a node", wide=True)
    with dialog.body:
        form = Tag("div", "", "stack")
        with form:
            Tag(
                "p",
                "You get a code and one command to run on the node. The code works once, for 30 minutes.",
                "muted",
            )
            with Tag("div", "", "pair"):
                name = TextField("Name", placeholder="The machine's own name", hint="Optional.")
                tags = TextField("Tags", placeholder="pumps, north", hint="Optional. Flows can run on a tag.")

    async def make() -> None:
        async with visit.writing() as work:
            code = await work.nodes.create_verification_code(
                VerificationCodeForm(name=name.value.strip(), tags=split_tags(tags.value))
            )
        form.delete()
        dialog.foot.clear()
        await _show_code(visit, dialog, code, name.value.strip())

    with dialog.foot:
        Button("Cancel", dialog.close)
        Button("Make the code", visit.acting(make), kind="primary")
    dialog.open()


async def _show_code(visit: Visit, dialog: Dialog, code: VerificationCodeView, name: str) -> None:
    joined: set[str] = set()
    with dialog.body:
        content = Tag("div", "", "stack stack-wide")
        with content:
            with Tag("div", "", "stack stack-tight"):
                Tag("h3", "Run this on the node")
                CopyLine(code.command, "Enrol command")
            with Tag("div", "", "stack stack-tight"):
                Tag("h3", "Verification code")
                CopyLine(code.code, "Verification code", large=True)
            if code.fingerprint:
                Tag(
                    "p",
                    "The command carries the fingerprint of this portal's certificate, so that the node trusts this "
                    "portal and no other.",
                    "muted small",
                )
        with Tag("div", "", "well", role="status") as state, Tag("div", "", "line line-apart"):
            status("busy", "Waiting for the node")
            with Tag("span", "", "data muted"):
                Tag("span", "code ends in ")
                Moment(code.expires_at, "countdown", ended="expired: make another")
    with dialog.foot:
        Button("Close", dialog.close)

    async def happened(events: Sequence[Event]) -> None:
        for event in events:
            node = str(event.data.get("node", ""))
            if dialog.is_deleted or event.data.get("change") != "enrolled" or joined or (name and node != name):
                continue
            joined.add(node)
            content.delete()
            dialog.heading.text = f"{node} has joined"
            state.clear()
            with state:
                status("good", f"{node} is enrolled and online in a moment.")
            dialog.foot.clear()
            with dialog.foot:
                Button("Close", dialog.close)
                Button("Open the node", kind="primary", to=f"/nodes/{event.data['node_id']}")

    dialog.on_closed(await visit.watch(nodes_topic(visit.caller.organization_id), then=happened))
