"""One device's link: MQTT over TLS as IoT Hub speaks it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from agent.errors import StorageError
from emulator import codec, topics
from emulator.errors import DeviceNotFoundError, DeviceOfflineError, MessageInvalidError, MethodTimeoutError
from emulator.registry import CloudMessage, Device
from emulator.sas import SasError, check_token

if TYPE_CHECKING:
    from emulator.hub import Hub

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 10.0
MESSAGE_LIMIT_BYTES = 256 * 1024
"""IoT Hub's limit for a device-to-cloud message, properties included; a larger one cuts the link."""
_KEEP_ALIVE_FACTOR = 1.5
_UNCOMMITTED_LIMIT = 1000
_UNCOMMITTED_LIMIT_BYTES = 8 * 1024 * 1024
_WRITE_BUFFER_LIMIT_BYTES = 4 * 1024 * 1024
_CLOSE_TIMEOUT_SECONDS = 2.0


class RefusedError(Exception):
    """A CONNECT is refused with a CONNACK code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What a device answered to a direct method."""

    status: int
    payload: Any


class Link:
    """A connection from its first byte to its last. For the loop only."""

    def __init__(self, hub: Hub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._hub = hub
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self.device_id = ""
        self.reason = "the device closed the link"
        """Why the link ended."""
        self._persistent = False
        self._subscriptions: dict[str, int] = {}
        self._outgoing: list[bytes] = []
        self._flushing = False
        self._uncommitted = 0
        self._uncommitted_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._methods: dict[str, asyncio.Future[MethodResult]] = {}
        self._method_number = 0
        self._in_flight: dict[int, int] = {}
        """Packet identifier → number of the cloud-to-device message."""
        self._packet_id = 0
        self._fault_generation = hub.faults.generation
        self._stored = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the link until it ends, whoever ends it."""
        try:
            await self._serve()
        except (codec.ProtocolError, StorageError, DeviceNotFoundError) as error:
            self.reason = str(error)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            logger.debug("%s broke off", self.device_id, extra={"action": "broken"})
        except asyncio.CancelledError:
            self.reason = "the hub stops"
            raise
        finally:
            for task in self._tasks:
                task.cancel()
            for future in self._methods.values():
                if not future.done():
                    future.set_exception(DeviceOfflineError(f"{self.device_id} went offline before it answered."))
            self._hub.ended(self)
            await self._close()

    def cut(self, reason: str) -> None:
        """End the link at once, without a farewell: TLS and MQTT see a dropped connection."""
        self.reason = reason
        self._hub.ended(self)
        self._writer.transport.abort()

    def listens_for(self, topic_filter: str) -> bool:
        """Whether the device has subscribed to `topic_filter`."""
        return topic_filter in self._subscriptions

    def send_desired(self, patch: dict[str, Any], version: int) -> None:
        """Tell the device of changed desired properties, if it listens."""
        if self.listens_for(topics.TWIN_DESIRED_FILTER):
            document = msgspec.json.encode({**patch, "$version": version})
            self._send(codec.publish(topics.desired_topic(version), document))

    async def invoke(self, name: str, payload: Any, timeout_seconds: float) -> MethodResult:
        """Call a direct method and wait for its answer.

        Raises DeviceOfflineError when the device does not listen for methods or leaves, MethodTimeoutError when it
        does not answer.
        """
        if not self.listens_for(topics.METHODS_FILTER):
            raise DeviceOfflineError(f"{self.device_id} is connected and does not listen for direct methods.")
        self._method_number += 1
        request_id = f"{self._method_number:x}"
        future: asyncio.Future[MethodResult] = self._loop.create_future()
        self._methods[request_id] = future
        try:
            self._send(codec.publish(topics.method_topic(name, request_id), msgspec.json.encode(payload)))
            async with asyncio.timeout(timeout_seconds):
                return await future
        except TimeoutError as error:
            raise MethodTimeoutError(
                f"{self.device_id} did not answer the method {name!r} within {timeout_seconds:g} s."
            ) from error
        finally:
            del self._methods[request_id]

    async def deliver(self, messages: Iterable[CloudMessage]) -> None:
        """Send cloud-to-device messages that are not on their way yet, if the device listens."""
        qos = self._subscriptions.get(topics.C2D_FILTER.format(device=self.device_id))
        if qos is None:
            return
        done = []
        for message in messages:
            if message.id in self._in_flight.values():
                continue
            topic = topics.c2d_topic(self.device_id, message.system, message.properties)
            if qos == 0:
                self._send(codec.publish(topic, message.payload))
                done.append(message.id)
                continue
            packet_id = self._next_packet_id()
            self._in_flight[packet_id] = message.id
            self._send(codec.publish(topic, message.payload, packet_id=packet_id))
        if done:
            await self._hub.registry.dequeue(done)

    async def _serve(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                packet = await codec.read_packet(self._reader)
        except TimeoutError:
            self.reason = f"no CONNECT within {CONNECT_TIMEOUT_SECONDS:g} s"
            return
        if packet is None:
            return
        await self._hub.faults.thawed()
        try:
            device, keep_alive_seconds, expiry = self._sign_in(packet)
        except RefusedError as error:
            self.reason = f"refused: {error}"
            self._hub.refused(self.device_id, str(error))
            self._writer.write(codec.connack(error.code))
            return
        if expiry is not None:
            self._start(self._end_at(expiry))
        self._hub.signed_in(self)
        self._send(codec.connack(codec.ACCEPTED, session_present=bool(self._subscriptions)))
        await self._keep_subscriptions(device)
        await self._deliver_queued()
        await self._read(keep_alive_seconds * _KEEP_ALIVE_FACTOR or None)

    async def _read(self, silence_limit_seconds: float | None) -> None:
        while True:
            await self._hub.faults.thawed()
            try:
                async with asyncio.timeout(silence_limit_seconds):
                    packet = await codec.read_packet(self._reader)
            except TimeoutError:
                if self._hub.faults.settings.frozen:
                    continue
                self.reason = f"nothing came for {silence_limit_seconds:g} s (1.5 times the keep-alive)"
                return
            if packet is None:
                return
            if isinstance(packet, codec.Disconnect):
                self.reason = "the device disconnected"
                return
            await self._hub.faults.thawed()
            await self._handle(packet)

    def _sign_in(self, packet: codec.Packet) -> tuple[Device, int, float | None]:
        """Check a CONNECT; return the device, its keep-alive and when its token expires. Raises RefusedError."""
        if isinstance(packet, codec.UnsupportedConnect):
            raise RefusedError(codec.REFUSED_PROTOCOL, f"IoT Hub speaks MQTT 3.1.1, not level {packet.level}")
        if not isinstance(packet, codec.Connect):
            raise codec.ProtocolError(f"the first packet is a {type(packet).__name__}, not a CONNECT")
        forced = self._hub.faults.settings.refuse_connections
        if isinstance(forced, int):
            raise RefusedError(forced, f"the fault refuse_connections={forced} is on")
        self.device_id = packet.client_id
        if not packet.client_id:
            raise RefusedError(codec.REFUSED_CLIENT_ID, "the client id is empty; it must be the device's name")
        host, separator, rest = (packet.username or "").partition("/")
        user_device = rest.partition("/")[0]
        if not separator or not user_device:
            raise RefusedError(codec.REFUSED_CREDENTIALS, "the user name is not {hub name}/{device}/?api-version=…")
        if unquote(user_device) != packet.client_id:
            raise RefusedError(
                codec.REFUSED_NOT_AUTHORISED, f"the user name is of {user_device!r}, the client id {packet.client_id!r}"
            )
        if host.lower() not in self._hub.names:
            raise RefusedError(
                codec.REFUSED_NOT_AUTHORISED,
                f"this hub is not {host!r} (it is {', '.join(sorted(self._hub.names))}; see --hostname)",
            )
        device = self._hub.registry.find(packet.client_id)
        if device is None:
            raise RefusedError(codec.REFUSED_NOT_AUTHORISED, f"no device is named {packet.client_id!r}")
        if not device.enabled:
            raise RefusedError(codec.REFUSED_NOT_AUTHORISED, f"{device.id} is disabled")
        expiry = self._check_credentials(device, host, packet.password)
        self._persistent = not packet.clean_session
        self._subscriptions = dict(device.subscriptions) if self._persistent else {}
        return device, packet.keep_alive_seconds, expiry

    def _check_credentials(self, device: Device, host: str, password: str | None) -> float | None:
        """Return when the token expires; None for a certificate. Raises RefusedError."""
        if device.authentication == "x509":
            session = self._writer.get_extra_info("ssl_object")
            certificate = session.getpeercert(binary_form=True)
            if certificate is None:
                raise RefusedError(codec.REFUSED_NOT_AUTHORISED, f"{device.id} must present its certificate")
            if not device.holds(certificate):
                raise RefusedError(codec.REFUSED_NOT_AUTHORISED, f"the certificate is not {device.id}'s")
            return None
        if not password:
            raise RefusedError(codec.REFUSED_NOT_AUTHORISED, f"{device.id} must send a shared access signature")
        try:
            return check_token(
                password,
                resource=f"{host}/devices/{device.id}",
                keys=(device.primary_key, device.secondary_key),
                now=self._hub.clock.wall(),
            )
        except SasError as error:
            raise RefusedError(codec.REFUSED_NOT_AUTHORISED, str(error)) from error

    async def _end_at(self, expiry: float) -> None:
        await self._hub.clock.sleep(max(0.0, expiry - self._hub.clock.wall()))
        self.cut("the shared access signature expired")

    async def _handle(self, packet: codec.Packet) -> None:
        match packet:
            case codec.Publish():
                await self._published(packet)
            case codec.Puback():
                number = self._in_flight.pop(packet.packet_id, None)
                if number is not None:
                    await self._hub.registry.dequeue([number])
            case codec.Subscribe():
                await self._subscribe(packet)
            case codec.Unsubscribe():
                for name in packet.filters:
                    self._subscriptions.pop(name, None)
                await self._keep_subscriptions(self._hub.registry.get(self.device_id))
                self._send(codec.unsuback(packet.packet_id))
            case codec.Ping():
                self._send(codec.pingresp())
            case _:
                raise codec.ProtocolError(f"a second {type(packet).__name__} on one link")

    async def _subscribe(self, packet: codec.Subscribe) -> None:
        allowed = topics.allowed_filters(self.device_id)
        codes = []
        for name, qos in packet.filters:
            if name in allowed:
                self._subscriptions[name] = min(qos, 1)
                codes.append(min(qos, 1))
            else:
                codes.append(codec.SUBSCRIPTION_REFUSED)
        await self._keep_subscriptions(self._hub.registry.get(self.device_id))
        self._send(codec.suback(packet.packet_id, codes))
        if topics.C2D_FILTER.format(device=self.device_id) in (name for name, _ in packet.filters):
            await self._deliver_queued()

    async def _keep_subscriptions(self, device: Device) -> None:
        kept = self._subscriptions if self._persistent else {}
        if device.subscriptions == kept:
            return
        subscriptions = dict(kept)

        def edit(device: Device) -> None:
            device.subscriptions = subscriptions

        try:
            await self._hub.registry.change(device.id, edit)
        except DeviceNotFoundError:
            self.cut("the device was deleted")

    async def _deliver_queued(self) -> None:
        if self.listens_for(topics.C2D_FILTER.format(device=self.device_id)):
            await self.deliver(await self._hub.queued(self.device_id))

    async def _published(self, packet: codec.Publish) -> None:
        topic = topics.parse_topic(packet.topic, self.device_id)
        if isinstance(topic, topics.TelemetryTopic):
            await self._telemetry(packet, topic)
            return
        if topic is None:
            raise codec.ProtocolError(f"IoT Hub has no topic {packet.topic[:200]!r} for {self.device_id}")
        if packet.packet_id:
            self._send(codec.puback(packet.packet_id))
        match topic:
            case topics.TwinGet():
                device = self._hub.registry.get(self.device_id)
                twin = {"desired": device.desired.document(), "reported": device.reported.document()}
                self._answer_twin(200, topic.request_id, msgspec.json.encode(twin))
            case topics.TwinReport():
                await self._report_twin(topic, packet.payload)
            case topics.MethodAnswer():
                self._method_answered(topic, packet.payload)

    async def _telemetry(self, packet: codec.Publish, topic: topics.TelemetryTopic) -> None:
        size = len(packet.payload) + len(packet.topic.encode()) - len(f"devices/{self.device_id}/messages/events/")
        if size > MESSAGE_LIMIT_BYTES:
            raise codec.ProtocolError(
                f"a message of {size} bytes, properties included, is over IoT Hub's {MESSAGE_LIMIT_BYTES} bytes"
            )
        if packet.retain:
            topic.properties["mqtt-retain"] = "true"
        self._uncommitted += 1
        self._uncommitted_bytes += size
        if self._uncommitted > _UNCOMMITTED_LIMIT or self._uncommitted_bytes > _UNCOMMITTED_LIMIT_BYTES:
            self._room.clear()

        def done(stored: bool) -> None:
            self._uncommitted -= 1
            self._uncommitted_bytes -= size
            if (
                self._uncommitted_bytes <= _UNCOMMITTED_LIMIT_BYTES // 2
                and self._uncommitted <= _UNCOMMITTED_LIMIT // 2
            ):
                self._room.set()
            if stored:
                self._acknowledge(packet.packet_id)
            else:
                self.cut("a message could not be stored")

        self._hub.store.append(
            device=self.device_id,
            arrived=self._hub.clock.wall(),
            payload=packet.payload,
            system=topic.system,
            properties=topic.properties,
            done=done,
        )
        await self._room.wait()

    def _acknowledge(self, packet_id: int) -> None:
        faults = self._hub.faults
        if self._fault_generation != faults.generation:
            self._fault_generation, self._stored = faults.generation, 0
        self._stored += 1
        if faults.settings.cut_after is not None and self._stored >= faults.settings.cut_after:
            self.cut("the fault cut_after is on")
        elif not packet_id or faults.settings.drop_pubacks:
            return
        elif faults.settings.delay_puback_ms:
            self._loop.call_later(faults.settings.delay_puback_ms / 1000, self._send, codec.puback(packet_id))
        else:
            self._send(codec.puback(packet_id))

    async def _report_twin(self, topic: topics.TwinReport, payload: bytes) -> None:
        def edit(device: Device) -> None:
            device.reported = device.reported.merged(msgspec.json.decode(payload))

        try:
            device = await self._hub.registry.change(self.device_id, edit)
        except (MessageInvalidError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            body = msgspec.json.encode({"message": str(error)})
            self._answer_twin(400, topic.request_id, body)
        else:
            self._answer_twin(204, topic.request_id, b"", device.reported.version)

    def _answer_twin(self, status: int, request_id: str, body: bytes, version: int | None = None) -> None:
        if self.listens_for(topics.TWIN_ANSWERS_FILTER):
            self._send(codec.publish(topics.twin_answer_topic(status, request_id, version), body))

    def _method_answered(self, topic: topics.MethodAnswer, payload: bytes) -> None:
        future = self._methods.get(topic.request_id)
        if future is None or future.done():
            return
        try:
            document = msgspec.json.decode(payload) if payload else None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            document = payload.decode("utf-8", "replace")
        future.set_result(MethodResult(topic.status, document))

    def _next_packet_id(self) -> int:
        while True:
            self._packet_id = self._packet_id % 0xFFFF + 1
            if self._packet_id not in self._in_flight:
                return self._packet_id

    def _send(self, data: bytes) -> None:
        """Write soon, together with what else is written in this turn of the loop."""
        self._outgoing.append(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._hub.faults.settings.frozen:
            self._start(self._flush_when_thawed())
            return
        self._flushing = False
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        if self._writer.transport.is_closing():
            return
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > _WRITE_BUFFER_LIMIT_BYTES:
            self.cut("the device does not read what it is sent")

    async def _flush_when_thawed(self) -> None:
        await self._hub.faults.thawed()
        self._flush()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work, name=f"link-{self.device_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                with contextlib.suppress(OSError):
                    await self._writer.wait_closed()
        except TimeoutError:
            self._writer.transport.abort()
