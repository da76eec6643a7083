"""Tables of tracking records."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlalchemy.orm import Mapped

from portal.database import Base
from portal.ledger import LedgerEntry


class TrackingRecord(LedgerEntry, Base):
    """What a service told with Track. Its place in the node's ledger makes it unique, so it is stored once."""

    __tablename__ = "tracking_records"
    __table_args__ = (
        UniqueConstraint("node_id", "stream", "service", "sequence"),
        Index("ix_tracking_records_organization_id_id", "organization_id", "id"),
        Index("ix_tracking_records_node_id_id", "node_id", "id"),
    )

    record: Mapped[dict[str, Any]]
    """As the service gave it."""
