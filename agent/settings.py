"""What the portal said at the last good sign-in: kept, so that a node starts without a network."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.errors import HubProtocolError
from agent.files import write_atomically
from agent.hub.protocol import SignedManifest
from agent.paths import Paths

_NOT_FOR_SERVICES = frozenset(
    {"sas", "scriptToken", "iotHub", "manifest", "trackingToken", "receiveConnectionString", "sbNamespace"}
)
"""Secrets of the node and documents that are no setting: `get_settings()` never shows them."""

_NOT_STORED = frozenset({"scriptToken", "manifest"})
"""Good for one connection only, or stored elsewhere."""


class DisconnectPolicy(msgspec.Struct, rename="camel"):
    """How a node finds out that it is cut off."""

    heartbeat_timeout: float = 60.0
    """Seconds between heartbeats."""
    missed_hearbeat_limit: int = 3
    """Unanswered heartbeats until the connection counts as dead (the original's spelling)."""


class Policies(msgspec.Struct, rename="camel"):
    """The part of the policies that the agent acts on."""

    disconnect_policy: DisconnectPolicy = msgspec.field(default_factory=DisconnectPolicy)


class IotHubSettings(msgspec.Struct, rename="camel"):
    """The IoT Hub that the portal assigned to this node."""

    connection_string: str
    certificate_authority: str = ""

    def __repr__(self) -> str:
        return "IotHubSettings(…)"


class SignIn(msgspec.Struct, rename="camel"):
    """A sign-in answer, as far as the agent reads it; `raw` holds all of it."""

    id: str
    node_name: str
    organization_id: str
    organization_name: str = ""
    state: str = "Active"
    debug: bool = False
    enable_tracking: bool = False
    tags: list[str] = []
    policies: Policies = msgspec.field(default_factory=Policies)
    iot_hub: IotHubSettings | None = None
    manifest: SignedManifest | None = None
    script_token: str = ""
    raw: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"SignIn(node_name={self.node_name!r}, state={self.state!r})"

    @property
    def active(self) -> bool:
        """Whether the node is to run its services."""
        return self.state.lower() != "inactive"

    def for_services(self) -> dict[str, Any]:
        """What `get_settings()` returns: everything that is not a secret of the node."""
        return {key: value for key, value in self.raw.items() if key not in _NOT_FOR_SERVICES}

    def updated(self, changes: dict[str, Any]) -> SignIn:
        """The same settings with some keys replaced (an `updateDeployment`, a `changeState`)."""
        return read_sign_in({**self.raw, **changes})


def read_sign_in(document: object) -> SignIn:
    """Check a sign-in answer. Raises HubProtocolError naming the key that is wrong."""
    if not isinstance(document, dict):
        raise HubProtocolError("The portal's sign-in answer is not an object.")
    try:
        settings = msgspec.convert({key: value for key, value in document.items() if key != "raw"}, SignIn)
    except msgspec.ValidationError as error:
        raise HubProtocolError(f"The portal's sign-in answer cannot be used: {error}.") from error
    settings.raw = document
    return settings


def store_settings(paths: Paths, settings: SignIn) -> None:
    """Keep `settings` for a start without a network. Raises OSError with the old ones still in place."""
    document = {key: value for key, value in settings.raw.items() if key not in _NOT_STORED}
    write_atomically(paths.settings, msgspec.json.format(msgspec.json.encode(document), indent=2))


def load_settings(paths: Paths) -> SignIn | None:
    """The settings of the last sign-in, or None where there are none.

    A file that cannot be read is set aside as `settings.json.damaged` and counts as none: the identity is elsewhere
    and the portal says the settings anew.
    """
    try:
        return read_sign_in(msgspec.json.decode(paths.settings.read_bytes()))
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, HubProtocolError):
        paths.settings.replace(paths.settings.with_name("settings.json.damaged"))
        return None
