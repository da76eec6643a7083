"""Tables of organisations."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from portal.database import Base


class Organization(Base):
    """Whose things these are."""

    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime]
    signing_key: Mapped[bytes] = mapped_column(LargeBinary)
    """The raw Ed25519 private key, encrypted."""
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    allow_original_agents: Mapped[bool] = mapped_column(default=False)
    heartbeat_seconds: Mapped[int] = mapped_column(default=30)
    missed_heartbeat_limit: Mapped[int] = mapped_column(default=3)
