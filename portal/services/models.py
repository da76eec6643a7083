"""Tables of services."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from portal.database import Base


class Service(Base):
    """A Python service; its id is its file's name in lower case, the dot an underscore."""

    __tablename__ = "services"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    file: Mapped[str] = mapped_column(String(100))
    description: Mapped[str] = mapped_column(Text)
    properties: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    updated_by: Mapped[str] = mapped_column(String(100))


class ServiceVersion(Base):
    """One version of a service's text."""

    __tablename__ = "service_versions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["organization_id", "service_id"], ["services.organization_id", "services.id"], ondelete="CASCADE"
        ),
    )

    organization_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    service_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    major: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    minor: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    source: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    requirements: Mapped[list[str]] = mapped_column(default=list)
    saved_at: Mapped[datetime]
    saved_by: Mapped[str] = mapped_column(String(100))

    @property
    def version(self) -> str:
        """`1.0`."""
        return f"{self.major}.{self.minor}"
