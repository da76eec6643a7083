"""Tables of faults."""

from __future__ import annotations

from sqlalchemy import Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from portal.database import Base
from portal.ledger import LedgerEntry


class Fault(LedgerEntry, Base):
    """Something that went wrong on a node. Its place in the node's ledger makes it unique, so it counts once."""

    __tablename__ = "faults"
    __table_args__ = (
        UniqueConstraint("node_id", "stream", "service", "sequence"),
        Index("ix_faults_organization_id_id", "organization_id", "id"),
        Index("ix_faults_node_id_id", "node_id", "id"),
    )

    code: Mapped[str] = mapped_column(String(50))
    text: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
