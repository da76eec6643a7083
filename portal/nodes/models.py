"""Tables of nodes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from portal.database import Base


class Node(Base):
    """A machine that runs services."""

    __tablename__ = "nodes"
    __table_args__ = (UniqueConstraint("organization_id", "name_key"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(63))
    name_key: Mapped[str] = mapped_column(String(63))
    """The name without regard to case."""
    kind: Mapped[str] = mapped_column(String(20))
    """`outstation` or `original`: which agent enrolled."""
    public_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Of our agent: its raw Ed25519 key."""
    sas_hash: Mapped[str | None] = mapped_column(String(64))
    """Of an original agent: the hash of its secret."""
    enabled: Mapped[bool] = mapped_column(default=True)
    tracking: Mapped[bool] = mapped_column(default=False)
    console: Mapped[bool] = mapped_column(default=False)
    console_until: Mapped[datetime | None] = mapped_column(index=True)
    created_at: Mapped[datetime]

    online: Mapped[bool] = mapped_column(default=False)
    presence_since: Mapped[datetime | None]
    last_seen_at: Mapped[datetime | None]
    machine_name: Mapped[str] = mapped_column(String(255), default="")
    agent_version: Mapped[str] = mapped_column(String(50), default="")
    platform: Mapped[str] = mapped_column(String(200), default="")
    ip_addresses: Mapped[list[str]] = mapped_column(default=list)
    mac_addresses: Mapped[list[str]] = mapped_column(default=list)
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    facts_at: Mapped[datetime | None]
    readings_delivered: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Messages of services that have reached the node's cloud, as it said last."""

    deployment: Mapped[str] = mapped_column(String(64), default="")
    """What it was last told to run."""
    reported_deployment: Mapped[str] = mapped_column(String(64), default="")
    deployment_state: Mapped[str] = mapped_column(String(20), default="unknown")
    deployment_error: Mapped[str] = mapped_column(Text, default="")

    iot_hub: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Connection string and certificate authority, encrypted."""
    iot_hub_address: Mapped[str | None] = mapped_column(String(300))


class NodeTag(Base):
    """A tag of a node."""

    __tablename__ = "node_tags"

    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True)
    tag_key: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    """The tag without regard to case."""
    tag: Mapped[str] = mapped_column(String(64))


class NodeService(Base):
    """The state of a service as its node reported it."""

    __tablename__ = "node_services"

    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True)
    service_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    version: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(20))
    pid: Mapped[int | None]
    fault: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime | None]


class NodeEvent(Base):
    """One line of a node's timeline."""

    __tablename__ = "node_events"
    __table_args__ = (Index("ix_node_events_node_id_id", "node_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id", ondelete="CASCADE"))
    node_id: Mapped[str] = mapped_column(ForeignKey("nodes.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(index=True)
    kind: Mapped[str] = mapped_column(String(20))
    text: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


class VerificationCode(Base):
    """Lets one machine enrol; only a keyed hash of the code is stored."""

    __tablename__ = "verification_codes"

    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id", ondelete="CASCADE"))
    node_name: Mapped[str] = mapped_column(String(63))
    tags: Mapped[list[str]] = mapped_column(default=list)
    created_by: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    used_at: Mapped[datetime | None]


class Announcement(Base):
    """A machine that announced itself and waits to be claimed."""

    __tablename__ = "announcements"
    __table_args__ = (UniqueConstraint("organization_id", "identity"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id", ondelete="CASCADE"))
    identity: Mapped[str] = mapped_column(String(64))
    """Hash of host name, hardware addresses and key: a machine that asks again is the same announcement."""
    host_name: Mapped[str] = mapped_column(String(255))
    ip_address: Mapped[str] = mapped_column(String(64))
    mac_addresses: Mapped[list[str]] = mapped_column(default=list)
    imei: Mapped[str] = mapped_column(String(64))
    public_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    announced_at: Mapped[datetime] = mapped_column(index=True)
