"""What the Azure sink and its child process say to each other: length-prefixed msgpack over a socket pair.

Parent to child: `Configure` once, then `Send`, `MethodResult`, `Report`, `Stop`. The rest goes the other way. A session
is one connection; its number is in what belongs to it, because the two sides learn of its end at different moments.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

HEADER_BYTES: Final = 4
FRAME_LIMIT_BYTES: Final = 64 << 20


class Record(msgspec.Struct, array_like=True, tag=True):
    """The root of the records."""


class Configure(Record):
    """How to reach the hub, and as whom. The only place where credentials travel."""

    connection_string: str
    hostname: str
    device_id: str
    certificate_file: str
    key_file: str
    certificate_authority: str
    keep_alive_seconds: int
    stall_seconds: float
    connect_timeout_seconds: float
    renew_seconds: float
    """A session ends by itself after this time, before its token does."""
    websockets: bool
    product: str


class Telemetry(msgspec.Struct, frozen=True, array_like=True):
    """One message on its way out."""

    id: int
    payload: bytes
    message_id: str
    content_type: str
    content_encoding: str
    properties: dict[str, str]


class Send(Record):
    """Messages to send in this order; those of another session are ignored."""

    session: int
    messages: list[Telemetry]


class MethodResult(Record):
    """The answer to a `Method`."""

    request: str
    status: int
    payload: Any


class Report(Record):
    """A patch of the reported properties; answered by `Reported`."""

    number: int
    patch: dict[str, Any]


class Stop(Record):
    """Finish what is on its way, disconnect and exit."""


class Connected(Record):
    """The hub accepted us."""

    session: int


class Draining(Record):
    """This session takes no more messages; it ends when those on their way are confirmed."""

    session: int


class Disconnected(Record):
    """A session or an attempt ended."""

    session: int
    reason: str
    retry_seconds: float
    """When the next attempt begins; below 0 when this process ends."""


class Confirmed(Record):
    """The hub has these messages."""

    ids: list[int]


class Refused(Record):
    """The SDK will never send this message."""

    id: int
    reason: str


class Twin(Record):
    """The whole device twin."""

    session: int
    desired: dict[str, Any]
    reported: dict[str, Any]


class DesiredPatch(Record):
    """A change of the desired properties, with their `$version`."""

    session: int
    patch: dict[str, Any]


class Method(Record):
    """A direct method was called."""

    request: str
    name: str
    payload: Any


class Received(Record):
    """A cloud-to-device message."""

    payload: bytes
    properties: dict[str, str]
    message_id: str
    correlation_id: str
    content_type: str


class Reported(Record):
    """A reported patch was accepted, or why it was not."""

    number: int
    error: str


class Trouble(Record):
    """Something that does not end the session and that a person should read."""

    text: str


ToChild = Configure | Send | MethodResult | Report | Stop
ToParent = (
    Connected
    | Draining
    | Disconnected
    | Confirmed
    | Refused
    | Twin
    | DesiredPatch
    | Method
    | Received
    | Reported
    | Trouble
)

_encoder = msgspec.msgpack.Encoder()


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next record, still encoded; None when the other side is gone."""
    try:
        header = await reader.readexactly(HEADER_BYTES)
        length = int.from_bytes(header, "big")
        if length > FRAME_LIMIT_BYTES:
            raise ValueError(f"A record of {length} bytes on the Azure sink's socket; at most {FRAME_LIMIT_BYTES}.")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def frame(record: Record) -> bytes:
    """A record, ready for the socket."""
    body = _encoder.encode(record)
    return len(body).to_bytes(HEADER_BYTES, "big") + body
