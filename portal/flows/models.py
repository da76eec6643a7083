"""Tables of flows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from portal.database import Base


class Flow(Base):
    """Services that belong together, and where they run."""

    __tablename__ = "flows"
    __table_args__ = (UniqueConstraint("organization_id", "name_key"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    name_key: Mapped[str] = mapped_column(String(100))
    """The name without regard to case."""
    description: Mapped[str] = mapped_column(Text)
    enabled: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    updated_by: Mapped[str] = mapped_column(String(100))

    activities: Mapped[list[FlowActivity]] = relationship(
        order_by="FlowActivity.position", cascade="all, delete-orphan", lazy="selectin"
    )


class FlowActivity(Base):
    """One service in a flow."""

    __tablename__ = "flow_activities"
    __table_args__ = (
        # A service cannot go while a flow uses it.
        ForeignKeyConstraint(["organization_id", "service_id"], ["services.organization_id", "services.id"]),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    flow_id: Mapped[str] = mapped_column(ForeignKey("flows.id", ondelete="CASCADE"), index=True)
    organization_id: Mapped[str] = mapped_column(String(36))
    service_id: Mapped[str] = mapped_column(String(100))
    position: Mapped[int]
    version: Mapped[str] = mapped_column(String(20))
    """`latest` or `1.0`."""
    host: Mapped[str] = mapped_column(String(65))
    static: Mapped[dict[str, Any]] = mapped_column(default=dict)
    security: Mapped[bytes | None] = mapped_column(LargeBinary)
    """The values of the security properties, encrypted."""
    enabled: Mapped[bool] = mapped_column(default=True)
