"""What pages and API see of flows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from portal.views import Form, View

MASK = "••••••••"
"""Stands for a stored security value; sent back unchanged, the stored value stays."""
HOST_PATTERN = r"^#?[^\s#,][^\s,]{0,63}$"


class ActivityForm(Form):
    """One service in a flow."""

    id: str | None = Field(default=None, description="Of an activity that exists; keeps its stored security values.")
    service_id: str = Field(max_length=100, examples=["readgpio_py"])
    version: str = Field(default="latest", pattern=r"^(latest|\d{1,6}\.\d{1,6})$", examples=["latest", "1.0"])
    host: str = Field(
        pattern=HOST_PATTERN, description="A node's name, a tag (with or without `#`), or `#ALL`.", examples=["#ALL"]
    )
    static: dict[str, Any] = Field(default_factory=dict, examples=[{"gpio_pin": 17}])
    security: dict[str, Any] = Field(
        default_factory=dict, description=f"Write-only: read back as {MASK!r}, which keeps the stored value."
    )
    enabled: bool = True


class FlowForm(Form):
    """A flow as it is to be, whole."""

    name: str = Field(min_length=1, max_length=100, examples=["Pumps"])
    description: str = Field(default="", max_length=2000)
    enabled: bool = True
    activities: list[ActivityForm] = Field(default_factory=list, max_length=200)


class ActivityView(View):
    """One service in a flow."""

    id: str
    service_id: str
    service_name: str
    version: str
    resolved_version: str
    """What `latest` means now."""
    host: str
    static: dict[str, Any]
    security: dict[str, Any]
    """The ids of the values that are set, each masked."""
    enabled: bool
    nodes: int
    """How many nodes this runs on now."""


class FlowView(View):
    """A flow."""

    id: str
    name: str
    description: str
    enabled: bool
    activities: list[ActivityView]
    updated_at: datetime
    updated_by: str


class FlowImpact(View):
    """The nodes that saving a flow would change."""

    node_id: str
    node: str
    online: bool
    starts: list[str]
    """Services that it would run in addition."""
    stops: list[str]
    changes: list[str]
    """Services that would restart with another version or other values."""
