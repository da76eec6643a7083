"""MQTT 3.1.1 packets on asyncio streams, with amqtt's packet classes as the wire format.

amqtt reads leniently: it turns bytes that are not UTF-8 into a Python literal and drops what is left over. Here
such a packet is a ProtocolError, because a hub that guesses hides a client's fault.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from typing import Any

from amqtt.adapters import BufferReader
from amqtt.errors import AMQTTError, CodecError, MQTTError, NoDataError
from amqtt.mqtt import packet as wire
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsuback import UnsubackPacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

PACKET_LIMIT_BYTES = 384 * 1024
"""A longer packet is a ProtocolError. Room for a 256 KiB message and the longest topic that MQTT allows (64 KiB)."""

ACCEPTED = 0
REFUSED_PROTOCOL = 1
REFUSED_CLIENT_ID = 2
REFUSED_UNAVAILABLE = 3
REFUSED_CREDENTIALS = 4
REFUSED_NOT_AUTHORISED = 5
SUBSCRIPTION_REFUSED = 0x80

_RESERVED_FLAGS = {
    wire.CONNECT: 0,
    wire.PUBACK: 0,
    wire.SUBSCRIBE: 2,
    wire.UNSUBSCRIBE: 2,
    wire.PINGREQ: 0,
    wire.DISCONNECT: 0,
}


class ProtocolError(ValueError):
    """The peer sent something that is not MQTT 3.1.1, is too long, or is not a client's to send."""


@dataclass(frozen=True, slots=True)
class Connect:
    """A client asks for a session."""

    client_id: str
    clean_session: bool
    username: str | None
    password: str | None
    keep_alive_seconds: int
    """0: never time out."""


@dataclass(frozen=True, slots=True)
class UnsupportedConnect:
    """A client speaks another version of MQTT."""

    protocol: str
    level: int


@dataclass(frozen=True, slots=True)
class Publish:
    """A message."""

    topic: str
    payload: bytes
    qos: int
    packet_id: int
    """0 at QoS 0."""
    duplicate: bool
    retain: bool


@dataclass(frozen=True, slots=True)
class Puback:
    """A message arrived."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Topic filters with the QoS asked for."""

    packet_id: int
    filters: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Topic filters to forget."""

    packet_id: int
    filters: list[str]


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A clean end."""


Packet = Connect | UnsupportedConnect | Publish | Puback | Subscribe | Unsubscribe | Ping | Disconnect


async def read_packet(reader: asyncio.StreamReader, *, limit_bytes: int = PACKET_LIMIT_BYTES) -> Packet | None:
    """Read one packet; None when the peer closed between two packets.

    Raises ProtocolError for what is not a client's valid packet or is longer than `limit_bytes`, and
    asyncio.IncompleteReadError when the peer closed within one.
    """
    first = await reader.read(1)
    if not first:
        return None
    length = 0
    for position in range(4):
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << (7 * position)
        if not byte & 0x80:
            break
    else:
        raise ProtocolError("the length field is longer than four bytes")
    if length > limit_bytes:
        raise ProtocolError(f"a packet of {length} bytes is over the limit of {limit_bytes} bytes")
    body = await reader.readexactly(length) if length else b""
    return await decode(first[0], body)


async def decode(first_byte: int, body: bytes) -> Packet:
    """Decode a packet's first byte and what follows its length. Raises ProtocolError."""
    kind, flags = first_byte >> 4, first_byte & 0x0F
    if kind == wire.PUBLISH:
        return await _decode_publish(flags, body)
    if kind not in _RESERVED_FLAGS:
        raise ProtocolError(f"packet type {kind} is not a client's to send to IoT Hub")
    if flags != _RESERVED_FLAGS[kind]:
        raise ProtocolError(f"flags {flags:#x} are not allowed in packet type {kind}")
    if kind in (wire.PINGREQ, wire.DISCONNECT):
        if body:
            raise ProtocolError(f"packet type {kind} carries {len(body)} bytes too many")
        return Ping() if kind == wire.PINGREQ else Disconnect()
    if kind == wire.PUBACK:
        puback = await _parse(PubackPacket, kind, flags, body)
        return Puback(_packet_id(puback.packet_id))
    if kind == wire.SUBSCRIBE:
        subscribe = await _parse(SubscribePacket, kind, flags, body)
        filters = subscribe.payload.topics
        if not filters or any(not name or qos > 2 for name, qos in filters):
            raise ProtocolError("SUBSCRIBE needs at least one topic filter, each with a QoS of 0, 1 or 2")
        return Subscribe(_packet_id(subscribe.variable_header.packet_id), filters)
    if kind == wire.UNSUBSCRIBE:
        unsubscribe = await _parse(UnsubscribePacket, kind, flags, body)
        if not unsubscribe.payload.topics:
            raise ProtocolError("UNSUBSCRIBE needs at least one topic filter")
        return Unsubscribe(_packet_id(unsubscribe.variable_header.packet_id), unsubscribe.payload.topics)
    return await _decode_connect(flags, body)


async def _decode_connect(flags: int, body: bytes) -> Connect | UnsupportedConnect:
    protocol, level = _protocol(body)
    if (protocol, level) != ("MQTT", 4):
        return UnsupportedConnect(protocol, level)
    packet = await _parse(ConnectPacket, wire.CONNECT, flags, body)
    if packet.reserved_flag:
        raise ProtocolError("CONNECT has its reserved flag set")
    if packet.password_flag and not packet.username_flag:
        raise ProtocolError("CONNECT has a password and no user name")
    return Connect(
        client_id=packet.client_id or "",
        clean_session=bool(packet.clean_session_flag),
        username=packet.username if packet.username_flag else None,
        password=packet.password if packet.password_flag else None,
        keep_alive_seconds=packet.keep_alive,
    )


def _protocol(body: bytes) -> tuple[str, int]:
    """A CONNECT's protocol name and level; other versions differ in all that follows."""
    size = int.from_bytes(body[:2], "big")
    if size > 16 or len(body) < size + 3:
        raise ProtocolError("CONNECT ends within its protocol name")
    return body[2 : 2 + size].decode("utf-8", "replace"), body[2 + size]


async def _decode_publish(flags: int, body: bytes) -> Publish:
    qos = (flags >> 1) & 3
    if qos > 1:
        raise ProtocolError(f"QoS {qos} is not supported by IoT Hub")
    size = int.from_bytes(body[:2], "big")
    try:
        body[2 : 2 + size].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError("a topic is not UTF-8") from error
    packet = await _parse(PublishPacket, wire.PUBLISH, flags, body, exact=False)
    if not packet.topic_name:
        raise ProtocolError("PUBLISH has no topic")
    return Publish(
        topic=packet.topic_name,
        payload=packet.data,
        qos=qos,
        packet_id=_packet_id(packet.packet_id) if qos else 0,
        duplicate=packet.dup_flag,
        retain=packet.retain_flag,
    )


async def _parse(packet_class: Any, kind: int, flags: int, body: bytes, *, exact: bool = True) -> Any:
    """Let amqtt parse; `exact` also demands that it would write the very same bytes."""
    header = wire.MQTTFixedHeader(kind, flags, len(body))
    try:
        packet = await packet_class.from_stream(BufferReader(body), fixed_header=header)
        if kind == wire.CONNECT and packet.payload.client_id_is_random:
            # amqtt makes up a name for a client that has none; IoT Hub refuses it.
            packet.payload.client_id = ""
        same = not exact or (packet.to_bytes().endswith(body) and header.remaining_length == len(body))
    except (AMQTTError, MQTTError, CodecError, NoDataError, ValueError, struct.error) as error:
        raise ProtocolError(f"packet type {kind} cannot be read: {error}") from error
    if not same:
        raise ProtocolError(f"packet type {kind} is not well formed")
    return packet


def _packet_id(number: int) -> int:
    if not number:
        raise ProtocolError("a packet identifier is zero")
    return number


def connack(code: int, *, session_present: bool = False) -> bytes:
    """Answer a CONNECT: `code` 0 accepts."""
    return bytes(ConnackPacket.build(int(session_present), code).to_bytes())


def puback(packet_id: int) -> bytes:
    """Acknowledge a message."""
    return bytes(PubackPacket.build(packet_id).to_bytes())


def suback(packet_id: int, codes: list[int]) -> bytes:
    """Answer a SUBSCRIBE: the granted QoS of each filter, or SUBSCRIPTION_REFUSED."""
    return bytes(SubackPacket.build(packet_id, codes).to_bytes())


def unsuback(packet_id: int) -> bytes:
    """Answer an UNSUBSCRIBE."""
    return bytes(UnsubackPacket.build(packet_id).to_bytes())


def pingresp() -> bytes:
    """Answer a sign of life."""
    return bytes(PingRespPacket.build().to_bytes())


def publish(topic: str, payload: bytes, *, packet_id: int = 0, duplicate: bool = False) -> bytes:
    """A message to the client, at QoS 1 when it has a `packet_id`, else at QoS 0."""
    packet = PublishPacket.build(topic, payload, packet_id or None, duplicate, 1 if packet_id else 0, False)
    return bytes(packet.to_bytes())
