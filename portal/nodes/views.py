"""What pages and API see of nodes."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, SecretStr

from portal.views import Form, View

NodeKind = Literal["outstation", "original"]
DeploymentState = Literal["unknown", "pending", "running", "staged", "failed"]
Tag = str
TAG_PATTERN = r"^[^\s#,][^\s,]{0,63}$"
NODE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


class NodeView(View):
    """A node as a list shows it."""

    id: str
    name: str
    kind: NodeKind
    tags: list[Tag]
    online: bool
    presence_since: datetime | None
    """When it came or went; None if it never signed in."""
    last_seen_at: datetime | None
    enabled: bool
    console: bool
    console_until: datetime | None
    """When its console switches itself off."""
    tracking: bool
    agent_version: str
    platform: str
    machine_name: str
    deployment_state: DeploymentState
    faults: int
    """Faults of the last 24 hours."""
    iot_hub: str | None
    """The device's address, `device@hub`; the key is never shown."""
    created_at: datetime


class NodeCounts(View):
    """How many nodes are how; a disabled node is online or offline besides."""

    nodes: int
    online: int
    offline: int
    disabled: int
    delivering: int
    """Nodes that have brought messages of services to their cloud."""
    faulty: int
    """Nodes that reported a fault in the last 24 hours."""
    faults: int
    """Faults that all nodes reported in the last 24 hours."""


class ServiceStateView(View):
    """A service as the node reports it."""

    id: str
    version: str
    state: str
    pid: int | None
    fault: str
    since: datetime | None


class AssignedServiceView(View):
    """A service that the node is to run, and why."""

    id: str
    file: str
    version: str
    sha256: str
    flow: str
    host: str
    enabled: bool
    overrides: list[str]
    """Other flows that assign the same service to this node less specifically and therefore do not count."""


class NodeDetail(NodeView):
    """A node as its own page shows it."""

    ip_addresses: list[str]
    mac_addresses: list[str]
    facts: dict[str, Any]
    """What the node measured of itself: processor, memory, disk, temperature, versions, outbox."""
    facts_at: datetime | None
    deployment: str
    """The deployment that it is to run."""
    reported_deployment: str
    deployment_error: str
    assigned: list[AssignedServiceView]
    services: list[ServiceStateView]


class NodeEventView(View):
    """One line of a node's timeline."""

    id: int
    at: datetime
    kind: str
    """`enrolled`, `online`, `offline`, `deployment`, `fault`, `changed`, `command`."""
    text: str
    detail: dict[str, Any]


class NodeChange(Form):
    """What to change; a field that is left out stays as it is."""

    name: str | None = Field(default=None, max_length=63, examples=["pump-house-1"])
    tags: list[Tag] | None = Field(default=None, max_length=50, examples=[["pumps", "north"]])
    enabled: bool | None = None
    console: bool | None = None
    """On for 30 minutes, or off."""
    tracking: bool | None = None


class VerificationCodeForm(Form):
    """For enrolling one node."""

    tags: list[Tag] = Field(default_factory=list, max_length=50, examples=[["pumps"]])
    name: str = Field(default="", max_length=63, description="The node's name; empty: the machine's own name.")
    minutes: int = Field(default=30, ge=1, le=1440)


class VerificationCodeView(View):
    """A verification code, shown this once."""

    code: str
    expires_at: datetime
    command: str
    """Ready to paste on the node."""
    portal_url: str
    fingerprint: str | None
    """SHA-256 of the portal's own certificate, when it is self-made."""


class IotHubForm(Form):
    """How the node reaches its IoT Hub."""

    connection_string: SecretStr = Field(
        max_length=4096,
        description="`HostName=…;DeviceId=…;SharedAccessKey=…`. Stored encrypted and never shown again.",
        examples=["HostName=hub.example.net;DeviceId=pump-house-1;SharedAccessKey=c2VjcmV0"],
    )
    certificate_authority: str = Field(
        default="", max_length=65536, description="PEM of the hub's certificate authority, when it is a private one."
    )


class AnnouncementView(View):
    """A node that announced itself and waits to be claimed."""

    id: str
    host_name: str
    ip_address: str
    mac_addresses: list[str]
    imei: str
    kind: NodeKind
    announced_at: datetime
    connected: bool
    """Whether it waits on an open connection; only then it can be claimed."""


class ClaimForm(Form):
    """Takes an announced node in."""

    name: str = Field(default="", max_length=63, description="Empty: its host name.")
    tags: list[Tag] = Field(default_factory=list, max_length=50)


class TagView(View):
    """A tag and how many nodes carry it."""

    tag: Tag
    nodes: int
