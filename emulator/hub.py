"""The hub: takes connections, and does to devices what a cloud back end does through IoT Hub."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import socket
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from agent.clock import Clock
from emulator.certificates import ServerCertificates
from emulator.errors import DeviceOfflineError, MessageInvalidError, QueueFullError
from emulator.faults import Faults
from emulator.link import Link, MethodResult
from emulator.registry import CloudMessage, Device, Registry
from emulator.store import Store
from emulator.tls import server_context

logger = logging.getLogger(__name__)

CLOUD_QUEUE_LIMIT = 50
"""IoT Hub's limit of cloud-to-device messages that wait for one device."""
CLOUD_MESSAGE_LIMIT_BYTES = 64 * 1024
CLOUD_MESSAGE_LIFE_SECONDS = 3600.0
_HANDSHAKE_TIMEOUT_SECONDS = 15.0
_CONNECTION_LIMIT = 1000
_BACKLOG = 128
_ACCEPT_PAUSE_SECONDS = 0.2


class Refusal(msgspec.Struct, frozen=True):
    """Why a device could not connect."""

    time: float
    device: str
    reason: str


class Hub:
    """Everything behind the MQTT port. For the loop only.

    Args:
        names: the host names (lower case) under which devices know this hub.
    """

    def __init__(
        self,
        *,
        store: Store,
        registry: Registry,
        certificates: ServerCertificates,
        names: Sequence[str],
        clock: Clock,
    ) -> None:
        self.store = store
        self.registry = registry
        self.names = frozenset(names)
        self.clock = clock
        self.faults = Faults()
        self.refusals: deque[Refusal] = deque(maxlen=20)
        """The latest reasons why devices could not connect."""
        self.connections = 0
        """How many times a device signed in since the start."""
        self._certificates = certificates
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._links: dict[str, Link] = {}
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    async def start(self, listener: socket.socket) -> None:
        """Take connections from `listener` (bound, not listening yet), which the hub owns from now on."""
        for asks in (False, True):
            self._contexts[asks] = await asyncio.to_thread(
                server_context, self._certificates, self.registry.knows_thumbprint if asks else None
            )
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self._accepting = asyncio.create_task(self._accept(listener), name="iothub-accept")

    async def stop(self) -> None:
        """Stop listening and end every link."""
        tasks = [*self._tasks]
        if self._accepting is not None:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def connected_devices(self) -> list[str]:
        """The names of the devices that have a link."""
        return sorted(self._links)

    def is_connected(self, device_id: str) -> bool:
        """Whether a device has a link."""
        return device_id in self._links

    async def wait_connected(self, device_id: str, *, connected: bool = True, timeout_seconds: float = 30.0) -> None:
        """Wait until a device has a link (or, with `connected=False`, has none). Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds), self._changed:
            await self._changed.wait_for(lambda: (device_id in self._links) is connected)

    def cut(self, device_id: str | None = None, reason: str = "cut by request") -> int:
        """Drop the link of one device, or of all; return how many there were."""
        links = [link for name, link in self._links.items() if device_id in (None, name)]
        for link in links:
            link.cut(reason)
        return len(links)

    async def invoke(
        self,
        device_id: str,
        name: str,
        payload: Any = None,
        *,
        response_timeout_seconds: float = 30.0,
        connect_timeout_seconds: float = 0.0,
    ) -> MethodResult:
        """Call a direct method of a device and return its answer.

        Waits up to `connect_timeout_seconds` for the device to be there. Raises DeviceNotFoundError,
        DeviceOfflineError, MethodTimeoutError.
        """
        self.registry.get(device_id)
        if connect_timeout_seconds and device_id not in self._links:
            try:
                await self.wait_connected(device_id, timeout_seconds=connect_timeout_seconds)
            except TimeoutError:
                logger.debug("%s did not come", device_id, extra={"action": "invoke"})
        link = self._links.get(device_id)
        if link is None:
            raise DeviceOfflineError(f"{device_id} is not connected, so a direct method cannot reach it.")
        return await link.invoke(name, payload, response_timeout_seconds)

    async def patch_desired(self, device_id: str, patch: Any) -> Device:
        """Merge `patch` into a device's desired properties and tell the device.

        Raises DeviceNotFoundError and MessageInvalidError.
        """

        def edit(device: Device) -> None:
            device.desired = device.desired.merged(patch)

        device = await self.registry.change(device_id, edit)
        link = self._links.get(device_id)
        if link is not None:
            changes = {name: value for name, value in patch.items() if not name.startswith("$")}
            link.send_desired(changes, device.desired.version)
        return device

    async def send(
        self,
        device_id: str,
        payload: bytes,
        *,
        system: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        life_seconds: float = CLOUD_MESSAGE_LIFE_SECONDS,
    ) -> str:
        """Send a cloud-to-device message; return its message id once it is stored.

        It waits until the device acknowledges it, or `life_seconds` are over. `system` may hold `message_id`,
        `correlation_id`, `content_type`, `content_encoding` and `user_id`.
        Raises DeviceNotFoundError, QueueFullError and MessageInvalidError (over 64 KiB).
        """
        self.registry.get(device_id)
        known = {"message_id": uuid4().hex, **(system or {}), "to": f"/devices/{device_id}/messages/devicebound"}
        size = len(payload) + sum(len(name) + len(value) for name, value in (properties or {}).items())
        if size > CLOUD_MESSAGE_LIMIT_BYTES:
            raise MessageInvalidError(f"The message is {size} bytes; IoT Hub takes {CLOUD_MESSAGE_LIMIT_BYTES}.")
        if len(await self.queued(device_id)) >= CLOUD_QUEUE_LIMIT:
            raise QueueFullError(f"{CLOUD_QUEUE_LIMIT} messages wait for {device_id} already.")
        message = await self.registry.enqueue(
            device_id,
            CloudMessage(
                payload=payload,
                system=known,
                properties=dict(properties or {}),
                expires=self.clock.wall() + life_seconds,
            ),
        )
        link = self._links.get(device_id)
        if link is not None:
            await link.deliver([message])
        return known["message_id"]

    async def queued(self, device_id: str) -> list[CloudMessage]:
        """The cloud-to-device messages that wait for a device; those whose time is over are dropped."""
        now = self.clock.wall()
        messages = await self.registry.queued(device_id)
        expired = [message.id for message in messages if message.expires <= now]
        if expired:
            await self.registry.dequeue(expired)
        return [message for message in messages if message.expires > now]

    def signed_in(self, link: Link) -> None:
        """A link says who it is; an older one of the same device ends."""
        older = self._links.get(link.device_id)
        if older is not None:
            older.cut("the device signed in on another link")
        self._links[link.device_id] = link
        self.connections += 1
        logger.info("%s connected", link.device_id, extra={"action": "connected"})
        self._notify()

    def ended(self, link: Link) -> None:
        """A link is over."""
        if self._links.get(link.device_id) is link:
            del self._links[link.device_id]
            logger.info("%s left: %s", link.device_id, link.reason, extra={"action": "disconnected"})
            self._notify()

    def refused(self, device_id: str, reason: str) -> None:
        """A device could not connect."""
        self.refusals.append(Refusal(self.clock.wall(), device_id[:128], reason))
        logger.warning("refused %s: %s", device_id[:128] or "a connection", reason, extra={"action": "refused"})

    def _notify(self) -> None:
        self._spawn(self._wake_waiters())

    async def _wake_waiters(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                await self.faults.thawed()
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    # Out of file descriptors: those that exist go on.
                    logger.warning("cannot accept: %s", error, extra={"action": "accept"})
                    await self.clock.sleep(_ACCEPT_PAUSE_SECONDS)
                    continue
                await self.faults.thawed()
                if self.faults.settings.refuse_connections == "tcp" or len(self._tasks) >= _CONNECTION_LIMIT:
                    connection.close()
                    continue
                self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._contexts[self.registry.has_certificates],
                ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_SECONDS,
                ssl_shutdown_timeout=1.0,
            )
        except OSError as error:
            self.refused("", f"TLS failed: {self._explain(error)}")
            return
        await Link(self, reader, asyncio.StreamWriter(transport, protocol, reader, loop)).run()

    def _explain(self, error: OSError) -> str:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        if "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
            return f"the device does not trust this hub; give it the authority in {self._certificates.authority}"
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return "the device's certificate has expired or its thumbprint is not registered"
        return str(reason)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def decode_payload(document: Mapping[str, Any]) -> bytes:
    """A cloud-to-device payload from `payload` (text as it is, else JSON) or `payload_base64`.

    Raises MessageInvalidError.
    """
    if "payload_base64" in document:
        try:
            return base64.b64decode(document["payload_base64"], validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise MessageInvalidError("payload_base64 is not Base64.") from error
    payload = document.get("payload", "")
    return payload.encode() if isinstance(payload, str) else msgspec.json.encode(payload)
