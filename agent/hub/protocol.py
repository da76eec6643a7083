"""The node hub's wire format: SignalR JSON hub protocol records, shared by agent and portal.

Facts: text frames, each record ended by 0x1E; record types 1 (invocation), 3 (completion), 6 (ping) and 7 (close)
(SignalR "Hub Protocol" and "Transport Protocols" documents); the handshake is `{"protocol":"json","version":1}`
answered by `{}`. camelCase names live in this module and nowhere else.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from agent.errors import HubProtocolError

RECORD_SEPARATOR = "\x1e"
RECORD_LIMIT_BYTES = 1024 * 1024
"""A longer record of a node closes its connection."""
PORTAL_RECORD_LIMIT_BYTES = 8 * 1024 * 1024
"""A portal's records may be longer: a sign-in answer holds the whole deployment, about 700 bytes a service."""
RECORDS_PENDING_LIMIT = 64
"""More unparsed records than this close the connection."""
PING_INTERVAL_SECONDS = 15.0
SERVER_TIMEOUT_SECONDS = 60.0
"""Silence for this long means the connection is dead."""

HANDSHAKE_REQUEST = '{"protocol":"json","version":1}' + RECORD_SEPARATOR
HANDSHAKE_RESPONSE = "{}" + RECORD_SEPARATOR


class Invocation(msgspec.Struct, tag=1, tag_field="type", rename="camel", omit_defaults=True):
    """Call `target` on the peer; an `invocation_id` asks for a completion."""

    target: str
    arguments: list[Any] = []
    invocation_id: str | None = None


class Completion(msgspec.Struct, tag=3, tag_field="type", rename="camel", omit_defaults=True):
    """The answer to an invocation: a result, or an error text."""

    invocation_id: str
    result: Any = None
    error: str | None = None


class Ping(msgspec.Struct, tag=6, tag_field="type"):
    """Nothing but a sign of life."""


class Close(msgspec.Struct, tag=7, tag_field="type", rename="camel", omit_defaults=True):
    """The peer ends the connection."""

    error: str | None = None
    allow_reconnect: bool = False
    """Where it is missing, the peer does not want the client back at once (SignalR's hub protocol)."""


Record = Invocation | Completion | Ping | Close
_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


def encode(record: Record) -> str:
    """One record as it goes on the wire, separator included."""
    return _encoder.encode(record).decode() + RECORD_SEPARATOR


class RecordReader:
    """Cuts text frames into records; keeps an unfinished record for the next frame."""

    def __init__(self, limit_bytes: int = RECORD_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._rest = ""

    def feed(self, text: str) -> Iterator[Record]:
        """Yield the records that `text` completes.

        Raises HubProtocolError for a record that is too long, too many at once, or not of the protocol.
        """
        parts = (self._rest + text).split(RECORD_SEPARATOR)
        self._rest = parts.pop()
        if len(self._rest) > self._limit_bytes:
            raise HubProtocolError(f"A hub record is longer than {self._limit_bytes} bytes.")
        if len(parts) > RECORDS_PENDING_LIMIT:
            raise HubProtocolError(f"More than {RECORDS_PENDING_LIMIT} hub records arrived in one frame.")
        for part in parts:
            if len(part) > self._limit_bytes:
                raise HubProtocolError(f"A hub record is longer than {self._limit_bytes} bytes.")
            try:
                yield _decoder.decode(part)
            except (msgspec.MsgspecError, RecursionError) as error:
                raise HubProtocolError(f"A hub record is not of the SignalR JSON protocol: {error}.") from error


class Negotiation(msgspec.Struct, rename="camel"):
    """What `POST /nodeHub/negotiate` answers; `nonce` is ours, an original portal sends none."""

    connection_id: str
    nonce: str = ""


def decode_negotiation(body: bytes) -> Negotiation:
    """Read negotiate's answer. Raises HubProtocolError."""
    try:
        return msgspec.json.decode(body, type=Negotiation)
    except msgspec.MsgspecError as error:
        raise HubProtocolError(f"its negotiate answer cannot be read: {error}.") from error


# --- Signing in -------------------------------------------------------------------------------------------------


def sign_in_challenge(*, connection_id: str, nonce: str, node_name: str) -> bytes:
    """The bytes that a node signs with its Ed25519 key to prove who it is; the nonce is negotiate's."""
    return "\n".join(("outstation-sign-in-v1", connection_id, nonce, node_name)).encode()


def sign_in_request(
    *,
    node_id: str,
    node_name: str,
    organization_id: str,
    machine_name: str,
    agent_version: str,
    platform: str,
    ip_addresses: list[str],
    mac_addresses: list[str],
    signature: bytes,
    wall: float,
) -> dict[str, Any]:
    """The argument of `signInAsync`: the original's host data, and the signature that stands for its secret."""
    return {
        "id": node_id,
        "timestamp": datetime.fromtimestamp(wall, tz=UTC).isoformat(),
        "Name": node_name,
        "machineName": machine_name,
        "OrganizationID": organization_id,
        "npmVersion": agent_version,
        "agent": "outstation",
        "sas": "",
        "signature": base64.b64encode(signature).decode(),
        "ipAddresses": ip_addresses,
        "macAddresses": mac_addresses,
        "Platform": platform,
    }


# --- What a node is to run ----------------------------------------------------------------------------------------

MANIFEST_VERSION: Literal[1] = 1


class Property(msgspec.Struct, omit_defaults=True):
    """One configured value of a service, as the original's itineraries carry it."""

    id: str
    value: Any = None
    type: str = "string"


class ServiceConfig(msgspec.Struct, rename="camel"):
    """What `GetPropertyValue` reads."""

    general_config: list[Property] = []
    static_config: list[Property] = []
    security_config: list[Property] = []


class ManifestService(msgspec.Struct, rename="camel"):
    """One service version that the node is to run."""

    id: str
    """`readgpio_py`: the file name in lower case, its dot an underscore."""
    file: str
    """`ReadGPIO.py`; the class has the same name."""
    version: str
    sha256: str
    """Of the script's bytes, in lower-case hexadecimal."""
    path: str
    """Where the script is, relative to the portal's address: `/api/Scripts/…`."""
    flow: str = ""
    enabled: bool = True
    requirements: list[str] = []
    """PEP 508 requirements from the script's PEP 723 header, for people to see; the node reads the script's own."""
    config: ServiceConfig = msgspec.field(default_factory=ServiceConfig)


class Manifest(msgspec.Struct, rename="camel"):
    """Everything a node is to run, as one document, so that it can be staged, checked and switched as a whole."""

    node_id: str
    organization_id: str
    deployment: str
    """Changes whenever anything in the document changes (the SHA-256 of the services)."""
    services: list[ManifestService] = []
    version: int = MANIFEST_VERSION


class SignedManifest(msgspec.Struct):
    """A manifest as it travels: the exact bytes that were signed, and the organisation's Ed25519 signature."""

    document: str
    signature: str

    def open(self, *, public_key: bytes) -> Manifest:
        """Check the signature and decode.

        Raises HubProtocolError when the signature is not the organisation's or the document is not a manifest.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(
                base64.b64decode(self.signature), self.document.encode()
            )
        except (InvalidSignature, ValueError) as error:
            raise HubProtocolError(
                "The deployment's signature is not the organisation's; the node keeps what it runs."
            ) from error
        try:
            manifest = msgspec.json.decode(self.document, type=Manifest)
        except msgspec.MsgspecError as error:
            raise HubProtocolError(f"The deployment's document cannot be read: {error}.") from error
        if manifest.version != MANIFEST_VERSION:
            raise HubProtocolError(
                f"The deployment's document has version {manifest.version}; this agent reads {MANIFEST_VERSION}. "
                "Update the agent."
            )
        return manifest


# --- Error codes of `errorMessage` (the original's) -----------------------------------------------------------------

ERROR_INVALID_REQUEST = 1
ERROR_INVALID_CODE = 2
ERROR_ORGANIZATION_NOT_FOUND = 5
ERROR_NODE_NOT_FOUND = 6
ERROR_NODE_LOCKED = 7
ERROR_SECRET_NOT_VALID = 9
ERROR_AGENT_VERSION = 12
ARGUMENTS_INVALID = "arguments_invalid: "
"""How a completion's error begins when the same call would be refused for ever (ours)."""
NAME_TAKEN_REASON = "node_name_taken"
"""Third argument of an `errorMessage` with code 1 that an enrolment with a taken name gets."""
