"""What nodes deliver until it is acknowledged and the portal stores once: its place in the node's ledger names it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import BigInteger, ForeignKey, Integer, String, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column


class LedgerEntry:
    """The columns of a table of such records; node, stream, service and sequence together are unique in it."""

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id", ondelete="CASCADE"))
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id", ondelete="CASCADE"))
    stream: Mapped[str] = mapped_column(String(64))
    service: Mapped[str] = mapped_column(String(100))
    sequence: Mapped[int] = mapped_column(BigInteger)
    boot: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
    """When it happened, as the node believes."""
    received_at: Mapped[datetime] = mapped_column(index=True)


Entry = TypeVar("Entry", bound=LedgerEntry)


async def add_new(session: AsyncSession, table: type[Entry], node_id: str, entries: Sequence[Entry]) -> list[Entry]:
    """Store the entries of a node that are not stored yet; which these were.

    One connection of a node is served at a time, so that nobody stores the same ones in between; should it
    happen nevertheless, the unique constraint refuses the transaction and the node reports them again.
    """
    keys = [(entry.stream, entry.service, entry.sequence) for entry in entries]
    rows = await session.execute(
        select(table.stream, table.service, table.sequence).where(
            table.node_id == node_id, tuple_(table.stream, table.service, table.sequence).in_(keys)
        )
    )
    seen = {(row[0], row[1], row[2]) for row in rows}
    new: list[Entry] = []
    for key, entry in zip(keys, entries, strict=True):
        if key not in seen:
            seen.add(key)
            new.append(entry)
    session.add_all(new)
    await session.flush()
    return new
