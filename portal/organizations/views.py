"""What pages and API see of an organisation."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from portal.views import Form, View


class OrganizationView(View):
    """The organisation that the caller belongs to."""

    id: str
    name: str
    created_at: datetime
    public_key: str
    """Base64 of the raw Ed25519 key that deployments are signed with."""
    allow_original_agents: bool
    """Whether agents of the original product may sign in and fetch scripts without a token."""
    heartbeat_seconds: int
    missed_heartbeat_limit: int


class OrganizationChange(Form):
    """What to change; a field that is left out stays as it is."""

    name: str | None = Field(default=None, min_length=1, max_length=100)
    allow_original_agents: bool | None = None
    heartbeat_seconds: int | None = Field(default=None, ge=5, le=3600)
    missed_heartbeat_limit: int | None = Field(default=None, ge=1, le=100)
