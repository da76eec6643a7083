"""Queries of nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import String, and_, case, cast, delete, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from portal.faults.models import Fault
from portal.nodes.models import Announcement, Node, NodeEvent, NodeService, NodeTag, VerificationCode


class NodeRepository:
    """Nodes, their tags, services, timelines, codes and announcements."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, row: Node | NodeTag | NodeEvent | VerificationCode | Announcement) -> None:
        """Store a new row."""
        self._session.add(row)

    async def delete(self, row: Node | Announcement) -> None:
        """Forget a row and what hangs on it."""
        await self._session.delete(row)

    async def page(
        self, organization_id: str, *, search: str, tag: str, status: str, limit: int, after: str | None
    ) -> Sequence[Node]:
        """Nodes by name."""
        query = select(Node).where(Node.organization_id == organization_id)
        if search:
            text = search.casefold()
            tagged = exists().where(NodeTag.node_id == Node.id, NodeTag.tag_key.contains(text, autoescape=True))
            query = query.where(
                or_(
                    Node.name_key.contains(text, autoescape=True),
                    func.lower(Node.machine_name).contains(text, autoescape=True),
                    cast(Node.ip_addresses, String).contains(text, autoescape=True),
                    tagged,
                )
            )
        if tag:
            query = query.where(
                exists().where(NodeTag.node_id == Node.id, NodeTag.tag_key == tag.removeprefix("#").casefold())
            )
        if status == "online":
            query = query.where(Node.online)
        elif status == "offline":
            query = query.where(~Node.online)
        elif status == "disabled":
            query = query.where(~Node.enabled)
        if after is not None:
            query = query.where(Node.name_key > after)
        return (await self._session.scalars(query.order_by(Node.name_key).limit(limit))).all()

    async def worst_first(self, organization_id: str, faults_since: datetime, *, limit: int) -> Sequence[Node]:
        """Nodes in trouble (a failed deployment, faults while online), then offline ones, then the others, by name."""
        faulty = exists().where(Fault.node_id == Node.id, Fault.received_at >= faults_since)
        trouble = case(
            (~Node.enabled, 3),
            (or_(Node.deployment_state == "failed", and_(Node.online, faulty)), 0),
            (~Node.online, 1),
            else_=2,
        )
        query = select(Node).where(Node.organization_id == organization_id)
        return (await self._session.scalars(query.order_by(trouble, Node.name_key).limit(limit))).all()

    async def counts(self, organization_id: str) -> tuple[int, int, int, int]:
        """How many nodes there are, and how many are online, are disabled, have brought messages to their cloud."""
        columns = [func.count().filter(which) for which in (Node.online, ~Node.enabled, Node.readings_delivered > 0)]
        query = select(func.count(), *columns).where(Node.organization_id == organization_id)
        row = (await self._session.execute(query)).one()
        return row[0], row[1], row[2], row[3]

    async def get(self, organization_id: str, node_id: str) -> Node | None:
        """One node by id."""
        return await self._session.scalar(
            select(Node).where(Node.organization_id == organization_id, Node.id == node_id)
        )

    async def get_for_change(self, organization_id: str, node_id: str) -> Node | None:
        """One node by id; nobody else changes it until the commit."""
        return await self._session.scalar(
            select(Node).where(Node.organization_id == organization_id, Node.id == node_id).with_for_update()
        )

    async def by_name(self, organization_id: str, name: str) -> Node | None:
        """One node by name, without regard to case."""
        return await self._session.scalar(
            select(Node).where(Node.organization_id == organization_id, Node.name_key == name.casefold())
        )

    async def by_ids(self, node_ids: Iterable[str]) -> Sequence[Node]:
        """Nodes by id, of whatever organisation: for the hub, which knows them by their connections."""
        return (await self._session.scalars(select(Node).where(Node.id.in_(list(node_ids))))).all()

    async def names(self, organization_id: str) -> Sequence[tuple[str, str, bool]]:
        """Id, name and presence of every node."""
        rows = await self._session.execute(
            select(Node.id, Node.name, Node.online)
            .where(Node.organization_id == organization_id)
            .order_by(Node.name_key)
        )
        return [(row[0], row[1], row[2]) for row in rows]

    async def name_keys_like(self, organization_id: str, prefix: str) -> set[str]:
        """Taken names that begin with `prefix`."""
        rows = await self._session.scalars(
            select(Node.name_key).where(
                Node.organization_id == organization_id, Node.name_key.startswith(prefix, autoescape=True)
            )
        )
        return set(rows)

    async def tags_of(self, node_ids: Sequence[str]) -> dict[str, list[str]]:
        """The tags of nodes."""
        tags: dict[str, list[str]] = {node_id: [] for node_id in node_ids}
        rows = await self._session.execute(
            select(NodeTag.node_id, NodeTag.tag).where(NodeTag.node_id.in_(node_ids)).order_by(NodeTag.tag_key)
        )
        for node_id, tag in rows:
            tags[node_id].append(tag)
        return tags

    async def tags_of_all(self, organization_id: str) -> dict[str, list[str]]:
        """The tags of every node that has some."""
        tags: dict[str, list[str]] = {}
        rows = await self._session.execute(
            select(NodeTag.node_id, NodeTag.tag)
            .join(Node, Node.id == NodeTag.node_id)
            .where(Node.organization_id == organization_id)
        )
        for node_id, tag in rows:
            tags.setdefault(node_id, []).append(tag)
        return tags

    async def set_tags(self, node_id: str, tags: Iterable[str]) -> None:
        """Replace a node's tags."""
        await self._session.execute(delete(NodeTag).where(NodeTag.node_id == node_id))
        for key, tag in {tag.casefold(): tag for tag in tags}.items():
            self._session.add(NodeTag(node_id=node_id, tag_key=key, tag=tag))

    async def tag_counts(self, organization_id: str) -> Sequence[tuple[str, int]]:
        """Tags in use and how many nodes carry each."""
        rows = await self._session.execute(
            select(func.min(NodeTag.tag), func.count())
            .join(Node, Node.id == NodeTag.node_id)
            .where(Node.organization_id == organization_id)
            .group_by(NodeTag.tag_key)
            .order_by(NodeTag.tag_key)
        )
        return [(row[0], row[1]) for row in rows]

    async def services_of(self, node_id: str) -> Sequence[NodeService]:
        """The states that a node reported."""
        return (
            await self._session.scalars(
                select(NodeService).where(NodeService.node_id == node_id).order_by(NodeService.service_id)
            )
        ).all()

    async def set_services(self, node_id: str, states: Iterable[NodeService]) -> None:
        """Replace the states that a node reported."""
        await self._session.execute(delete(NodeService).where(NodeService.node_id == node_id))
        self._session.add_all(states)

    def record(self, node: Node, at: datetime, kind: str, text: str, **detail: Any) -> None:
        """Add a line to a node's timeline."""
        self._session.add(
            NodeEvent(organization_id=node.organization_id, node_id=node.id, at=at, kind=kind, text=text, detail=detail)
        )

    async def events(self, node_id: str, *, limit: int, before: int | None) -> Sequence[NodeEvent]:
        """A node's timeline, newest first."""
        query = select(NodeEvent).where(NodeEvent.node_id == node_id)
        if before is not None:
            query = query.where(NodeEvent.id < before)
        return (await self._session.scalars(query.order_by(NodeEvent.id.desc()).limit(limit))).all()

    async def online_nodes(self) -> Sequence[Node]:
        """Nodes that are stored as online: after a crash, none of them is."""
        return (await self._session.scalars(select(Node).where(Node.online))).all()

    async def consoles_ended(self, moment: datetime) -> Sequence[Node]:
        """Nodes whose console was to be switched off before `moment`."""
        return (await self._session.scalars(select(Node).where(Node.console, Node.console_until <= moment))).all()

    async def code(self, code_hash: str) -> VerificationCode | None:
        """A verification code by its hash, which is the credential; nobody else gets it until the commit."""
        return await self._session.get(VerificationCode, code_hash, with_for_update=True)

    async def delete_codes_before(self, moment: datetime) -> None:
        """Forget codes that ended before `moment`."""
        await self._session.execute(delete(VerificationCode).where(VerificationCode.expires_at < moment))

    async def announcements(self, organization_id: str) -> Sequence[Announcement]:
        """What waits to be claimed, newest first."""
        return (
            await self._session.scalars(
                select(Announcement)
                .where(Announcement.organization_id == organization_id)
                .order_by(Announcement.announced_at.desc())
                .limit(1000)
            )
        ).all()

    async def announcement_count(self, organization_id: str) -> int:
        """How many wait."""
        return (
            await self._session.scalar(
                select(func.count()).select_from(Announcement).where(Announcement.organization_id == organization_id)
            )
            or 0
        )

    async def announcement(self, organization_id: str, announcement_id: str) -> Announcement | None:
        """One announcement; nobody else gets it until the commit."""
        return await self._session.scalar(
            select(Announcement)
            .where(Announcement.organization_id == organization_id, Announcement.id == announcement_id)
            .with_for_update()
        )

    async def announcement_by_identity(self, organization_id: str, identity: str) -> Announcement | None:
        """The earlier announcement of the same machine."""
        return await self._session.scalar(
            select(Announcement).where(
                Announcement.organization_id == organization_id, Announcement.identity == identity
            )
        )

    async def delete_announcements_before(self, moment: datetime) -> None:
        """Forget announcements that nobody claimed."""
        await self._session.execute(delete(Announcement).where(Announcement.announced_at < moment))
