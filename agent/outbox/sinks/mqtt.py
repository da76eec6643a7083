"""The MQTT sink: any broker, version 5 or 3.1.1, quality of service 1."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import logging
import ssl
import string
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from agent.backoff import FullJitterBackoff
from agent.clock import Clock, SystemClock
from agent.errors import ConfigError, MissingExtraError
from agent.outbox.feed import Feed
from agent.outbox.message import Kind, OutboxMessage
from agent.outbox.sinks.base import SinkStatus, StatusBook
from agent.outbox.sinks.guard import GuardedFeed
from agent.secret import Secret

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

T = TypeVar("T")

log = logging.getLogger(__name__)

TOPIC_FIELDS: Final = frozenset({"node", "service", "kind", "lane"})
TOPIC_FORBIDDEN: Final = str.maketrans(dict.fromkeys("+#/\0", "_"))
DRAIN_SECONDS: Final = 3.0
CLOSE_SECONDS: Final = 5.0
PACKET_OVERHEAD_BYTES: Final = 64

LONGEST_TEXT_BYTES: Final = 0xFFFF
_CONTENT_TYPE: Final = b"\x03"
_USER_PROPERTY: Final = b"\x26"

PERMANENT_REASONS: Final = frozenset({0x90, 0x95, 0x99})
"""Of a version 5 acknowledgement: topic name invalid, packet too large, payload format invalid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSettings:
    """How to reach a broker, and how messages look there.

    Args:
        host: its name or address.
        port: its port (default 8883).
        tls: encrypt, and verify the broker's certificate (default yes).
        topic: where messages go (default `outstation/{node}/{service}`); `{kind}` and `{lane}` may stand in it too.
            `+`, `#` and `/` in a name become `_`.
        protocol: `5` (default): what the node adds travels as user properties beside the untouched payload; or `3.1.1`.
        envelope: with `json` the payload is wrapped into a JSON object with what the node adds, which 3.1.1 has no
            other place for (default `none`: the payload alone).
        client_id: default `outstation-<node>`; a broker lets one connection in under each.
        username, password: for the broker, when it wants them.
        certificate_authority_file: trusted certificates (PEM), when the broker's is not publicly known.
        certificate_file, key_file: our certificate and key (PEM), when the broker asks for them.
        keep_alive_seconds: default 30.
        window: messages on their way at once (default 100).
        stall_seconds: how long the broker may acknowledge nothing before the connection is given up (default 20 s).
        connect_timeout_seconds: for the connection and for TLS (default 10 s).

    Raises ConfigError, which names the key.
    """

    host: str
    port: int = 8883
    tls: bool = True
    topic: str = "outstation/{node}/{service}"
    protocol: Literal["3.1.1", "5"] = "5"
    envelope: Literal["none", "json"] = "none"
    client_id: str = ""
    username: str = ""
    password: Secret = field(default_factory=lambda: Secret(""))
    certificate_authority_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    keep_alive_seconds: int = 30
    window: int = 100
    stall_seconds: float = 20.0
    connect_timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("sinks.mqtt.host is empty; set the broker's name or address.")
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(self.topic) if name is not None}
        except ValueError as error:
            raise ConfigError(f"sinks.mqtt.topic {self.topic!r} cannot be read: {error}.") from error
        if not names <= TOPIC_FIELDS:
            raise ConfigError(
                f"sinks.mqtt.topic has {{{'}, {'.join(sorted(names - TOPIC_FIELDS))}}}; "
                "it may have {node}, {service}, {kind} and {lane}."
            )
        if not self.topic or any(character in self.topic for character in "+#\0"):
            raise ConfigError(f"sinks.mqtt.topic {self.topic!r} is no topic to publish to; leave out + and #.")
        if not 1 <= self.window <= 10_000:
            raise ConfigError(f"sinks.mqtt.window is {self.window}; it must be from 1 to 10000.")
        if bool(self.certificate_file) != bool(self.key_file):
            raise ConfigError("sinks.mqtt needs certificate_file and key_file together, or neither.")

    def topic_of(self, message: OutboxMessage) -> str:
        """The topic of a message."""
        return self.topic.format(
            node=message.node.translate(TOPIC_FORBIDDEN),
            service=message.service.translate(TOPIC_FORBIDDEN),
            kind=message.kind,
            lane=message.lane,
        )

    def tls_context(self) -> ssl.SSLContext:
        """Verify the broker, and show our certificate when there is one. Blocks; raises OSError."""
        context = ssl.create_default_context(cafile=self.certificate_authority_file)
        if self.certificate_file is not None:
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context


class MqttSink:
    """Publish to a broker; a message is acknowledged when the broker has acknowledged it. On the loop only.

    Args:
        settings: the broker.
        node: the node's name, for the topic and the client id.
        name: the sink's name in the outbox (default `mqtt`).

    Raises MissingExtraError where paho-mqtt is not installed.
    """

    def __init__(
        self,
        settings: MqttSettings,
        *,
        node: str,
        name: str = "mqtt",
        kinds: frozenset[Kind] = frozenset({"telemetry"}),
        clock: Clock | None = None,
    ) -> None:
        if importlib.util.find_spec("paho") is None or importlib.util.find_spec("paho.mqtt") is None:
            raise MissingExtraError("paho-mqtt is not installed; install it with: pip install 'outstation[mqtt]'.")
        self.name = name
        self.kinds = kinds
        self._settings = settings
        self._node = node
        self._clock = clock or SystemClock()
        self._book = StatusBook(name, self._clock)

    def status(self) -> SinkStatus:
        """How it stands now."""
        return self._book.status()

    async def run(self, feed: Feed) -> None:
        """Publish what the feed has until cancelled."""
        backoff = FullJitterBackoff(first_seconds=0.5, most_seconds=60.0)
        # Of its own: a name server or a broker that hangs must not occupy the loop's threads.
        threads = ThreadPoolExecutor(2, "mqtt-connect")
        guarded = GuardedFeed(feed, self._book)
        try:
            while True:
                session = _Session(self._settings, self._node, guarded, self._book, threads)
                reason = await session.run()
                await guarded.session_over(reason)
                self._book.disconnected(reason)
                log.warning(
                    "Not connected to the broker %s: %s",
                    self._settings.host,
                    reason,
                    extra={"action": "mqtt_disconnected"},
                )
                if session.progressed:
                    backoff.reset()
                await self._clock.sleep(backoff.next_seconds())
        finally:
            guarded.close()
            self._book.disconnected()
            threads.shutdown(wait=False)


class _Session:
    """One connection with one client object: paho keeps what it did not deliver, so none is used twice."""

    def __init__(
        self, settings: MqttSettings, node: str, feed: GuardedFeed, book: StatusBook, threads: ThreadPoolExecutor
    ) -> None:
        self._settings = settings
        self._node = node
        self._feed = feed
        self._book = book
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._window = settings.window
        self._packet_bytes: int | None = None
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._end: str | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._pending: dict[int, int] = {}
        """The outbox's id by MQTT's packet id."""
        self._progress = 0.0
        self._acknowledged: deque[tuple[int, ReasonCode]] = deque()
        self._waking = False
        self.progressed = False

    async def run(self) -> str:
        """Connect and publish until the connection ends; why it did."""
        client: Client | None = None
        try:
            client = await self._in_thread(self._make_client)
            await self._in_thread(self._connect, client)
            client.loop_start()
            await asyncio.wait_for(self._accepted, self._settings.connect_timeout_seconds)
            return await self._serve(client)
        except TimeoutError:
            return "the broker did not answer in time"
        except (OSError, ValueError) as error:
            return str(error) or type(error).__name__
        finally:
            if client is not None:
                client.disconnect()
                await self._settle(client)

    async def _serve(self, client: Client) -> str:
        sending = asyncio.create_task(self._send(client), name="mqtt-send")
        attending = asyncio.create_task(self._attend(), name="mqtt-attend")
        try:
            done, _ = await asyncio.wait({sending, attending}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is not attending:
                    # The outbox was closed under us: nothing can be sent any more.
                    task.result()
            return await attending
        except asyncio.CancelledError:
            sending.cancel()
            await self._drain()
            raise
        finally:
            for task in (sending, attending):
                task.cancel()
            await asyncio.gather(sending, attending, return_exceptions=True)
            await self._take_in()

    # ---- on the loop

    async def _send(self, client: Client) -> None:
        while self._end is None:
            room = self._window - len(self._pending)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            batch = await self._feed.take(room)
            if not self._pending:
                self._progress = time.monotonic()
            for message in batch:
                await self._send_one(client, message)
            self._changed.set()

    async def _send_one(self, client: Client, message: OutboxMessage) -> None:
        if self._end is not None:
            return
        topic = self._settings.topic_of(message)
        payload = message.payload if self._settings.envelope == "none" else _envelope(message)
        most = self._packet_bytes
        if most is not None and _packet_size(topic, payload, message) > most:
            await self._feed.park(message.id, f"The broker takes packets of at most {most} bytes.")
            return
        try:
            properties = cast("Properties", _PublishProperties(message)) if self._settings.protocol == "5" else None
            info = client.publish(topic, payload, qos=1, properties=properties)
        except ValueError as error:
            await self._feed.park(message.id, f"It cannot be published: {error}.")
            return
        if info.rc != 0:
            self._end_with("the connection was lost")
            return
        self._pending[info.mid] = message.id
        self._book.sent += 1

    async def _attend(self) -> str:
        while True:
            self._changed.clear()
            await self._take_in()
            if self._end is not None:
                return self._end
            timeout = None
            if self._pending:
                timeout = self._progress + self._settings.stall_seconds - time.monotonic()
                if timeout <= 0:
                    return f"the broker acknowledged nothing for {self._settings.stall_seconds:.0f} s"
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                continue

    async def _take_in(self) -> None:
        """Pass the broker's acknowledgements on to the outbox."""
        arrived: list[int] = []
        while self._acknowledged:
            packet_id, reason = self._acknowledged.popleft()
            message_id = self._pending.get(packet_id)
            if message_id is None:
                continue
            if reason.is_failure and reason.value not in PERMANENT_REASONS:
                # It stays pending, and goes back to the outbox with what else is not confirmed.
                self._end_with(f"the broker refused a message: {reason}")
                continue
            del self._pending[packet_id]
            if reason.is_failure:
                await self._feed.park(message_id, f"The broker refused it: {reason}.")
            else:
                arrived.append(message_id)
        if arrived:
            self._progress = time.monotonic()
            self.progressed = True
            await self._feed.acknowledge(arrived)
        self._room.set()

    async def _drain(self) -> None:
        """Give what is on its way a moment to be confirmed."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._pending and self._end is None:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            log.debug("%d messages were not confirmed in time", len(self._pending))

    def _end_with(self, reason: str) -> None:
        if self._end is None:
            self._end = reason
        if not self._accepted.done():
            self._accepted.set_exception(ConnectionError(reason))
        self._changed.set()
        self._room.set()

    def _on_accepted(self, packet_bytes: int | None, receive_maximum: int | None) -> None:
        self._packet_bytes = packet_bytes
        if receive_maximum is not None:
            self._window = min(self._window, receive_maximum)
        self._book.connected()
        if not self._accepted.done():
            self._accepted.set_result(None)
        log.info("Connected to the broker %s.", self._settings.host, extra={"action": "mqtt_connected"})

    def _wake(self) -> None:
        self._waking = False
        self._changed.set()

    async def _settle(self, client: Client) -> None:
        try:
            await asyncio.wait_for(self._in_thread(client.loop_stop), CLOSE_SECONDS)
        except TimeoutError:
            log.info("The broker's connection did not end in time.", extra={"action": "mqtt_abandoned"})

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(self._threads, function, *arguments)

    # ---- in other threads

    def _make_client(self) -> Client:
        # Here and not at the top: a node without this sink does not pay for it.
        from paho.mqtt.client import Client, MQTTv5, MQTTv311
        from paho.mqtt.enums import CallbackAPIVersion

        settings = self._settings
        is_5 = settings.protocol == "5"
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id or f"outstation-{self._node}",
            protocol=MQTTv5 if is_5 else MQTTv311,
            clean_session=None if is_5 else True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = settings.connect_timeout_seconds
        client.max_inflight_messages_set(settings.window)
        if settings.username:
            client.username_pw_set(settings.username, settings.password.reveal() or None)
        if settings.tls:
            client.tls_set_context(settings.tls_context())
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        return client

    def _connect(self, client: Client) -> None:
        client.connect(self._settings.host, self._settings.port, self._settings.keep_alive_seconds)

    def _on_connect(
        self, client: Client, userdata: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._loop.call_soon_threadsafe(self._end_with, f"the broker refused the connection: {reason}")
        else:
            packet_bytes = getattr(properties, "MaximumPacketSize", None)
            receive_maximum = getattr(properties, "ReceiveMaximum", None)
            self._loop.call_soon_threadsafe(self._on_accepted, packet_bytes, receive_maximum)

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end_with, f"the connection ended: {reason}")

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._acknowledged.append((mid, reason))
        # One wake-up for all that arrives before the loop looks.
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._wake)


def _created(message: OutboxMessage) -> str:
    return datetime.fromtimestamp(message.created_wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _PublishProperties:
    """What paho needs of a version 5 PUBLISH's properties; its own class takes half of the time of a message."""

    __slots__ = ("_body",)

    def __init__(self, message: OutboxMessage) -> None:
        pairs = (_user_property(key, value) for key, value in _user_properties(message).items())
        self._body = b"".join((_CONTENT_TYPE, _text(message.content_type), *pairs))

    def pack(self) -> bytes:
        """The bytes on the wire: the length as a variable byte integer, then the properties."""
        length = len(self._body)
        head = bytearray()
        while length > 0x7F:
            head.append(length & 0x7F | 0x80)
            length >>= 7
        head.append(length)
        return bytes(head) + self._body


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) > LONGEST_TEXT_BYTES:
        raise ValueError(f"a property has {len(data)} bytes and MQTT takes {LONGEST_TEXT_BYTES}")
    return len(data).to_bytes(2, "big") + data


def _user_property(key: str, value: str) -> bytes:
    return _USER_PROPERTY + _text(key) + _text(value)


def _user_properties(message: OutboxMessage) -> dict[str, str]:
    return {
        **message.properties,
        **message.ledger_properties(),
        "os-message-id": message.message_id,
        "os-created": _created(message),
    }


def _packet_size(topic: str, payload: bytes, message: OutboxMessage) -> int:
    """The size of the packet in bytes, rather a little more than less."""
    properties = sum(len(key.encode()) + len(value.encode()) + 5 for key, value in _user_properties(message).items())
    return len(payload) + len(topic.encode()) + len(message.content_type) + properties + PACKET_OVERHEAD_BYTES


def _envelope(message: OutboxMessage) -> bytes:
    """The payload with all that is known about it, as one JSON object; not JSON itself: as text or Base64."""
    document: dict[str, Any] = {
        "id": message.message_id,
        "created": _created(message),
        "kind": message.kind,
        "properties": {**message.properties, **message.ledger_properties()},
        "contentType": message.content_type,
    }
    try:
        text = message.payload.decode("utf-8")
    except UnicodeDecodeError:
        document["payloadBase64"] = base64.b64encode(message.payload).decode("ascii")
        return json.dumps(document).encode()
    try:
        document["payload"] = json.loads(text) if message.content_type == "application/json" else text
    except ValueError:
        document["payload"] = text
    return json.dumps(document, ensure_ascii=False).encode()
