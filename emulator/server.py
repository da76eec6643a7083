"""The whole emulator in one object: for `outstation iothub`, for tests, and for service authors' own tests.

async with Emulator(data=tmp_path, address=free_loopback_address()) as hub:
    device = await hub.create_device("pi-1")
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.connection_string("pi-1"), server_verification_cert=hub.certificate_authority
    )
    ...
    messages = await hub.wait_for(10)
    assert (await hub.report()).missing == 0
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import ipaddress
import os
import random
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agent.clock import Clock, SystemClock
from agent.errors import AlreadyRunningError, ConfigError, StorageError
from emulator.api import HttpApi
from emulator.certificates import ServerCertificates, ensure_certificates, server_names
from emulator.faults import FaultSettings
from emulator.hub import CLOUD_MESSAGE_LIFE_SECONDS, Hub, decode_payload
from emulator.link import MethodResult
from emulator.registry import Device, Registry
from emulator.report import Report
from emulator.store import Store
from emulator.telemetry import Telemetry

MQTT_PORT = 8883
"""The port that Azure's SDK always dials."""
_PAGE = 500


class Emulator:
    """A local Azure IoT Hub; an async context manager. For the loop that entered it.

    Args:
        data: where everything is kept; made when missing. A second emulator on it is refused.
        address: the IP address to listen on. Azure's SDK always dials port 8883 of the host name in the connection
            string, so emulators that run at the same time take different addresses (`free_loopback_address()`).
        port: the MQTT port; another than 8883 is of no use to the SDK. 0 takes any.
        hostnames: further names for the certificate and the registry, the first one for connection strings, such
            as `my-hub.azure-devices.net` together with `GatewayHostName`.
        http_host: the HTTP API's address; None: `address` when that is loopback, else 127.0.0.1.
        http_port: the HTTP API's port; 0 takes any (default), None starts no API.
        api_token: what HTTP callers must send as bearer token; needed unless the API is on loopback.
        clock: for token expiry and arrival times.
        keep_messages: the newest messages whose contents are kept (default 100,000); the ledger knows all.

    Raises on entering: ConfigError, StorageError, AlreadyRunningError.
    """

    def __init__(
        self,
        *,
        data: Path,
        address: str = "127.0.0.1",
        port: int = MQTT_PORT,
        hostnames: Sequence[str] = (),
        http_host: str | None = None,
        http_port: int | None = 0,
        api_token: str = "",
        clock: Clock | None = None,
        keep_messages: int = 100_000,
    ) -> None:
        self._data = data
        self._address = _address(address)
        self._port = port
        self._names = server_names(address, hostnames)
        self._http_host = _address(http_host) if http_host else _http_default(self._address)
        self._http_port = http_port
        self._api_token = api_token
        self._clock = clock or SystemClock()
        self._keep_messages = keep_messages
        self._stack = AsyncExitStack()
        self._certificates: ServerCertificates
        self._store: Store
        self._registry: Registry
        self.hub: Hub
        """The hub itself, for what this class has no method for."""
        self.mqtt_port = port
        self.http_url = ""
        """Where the HTTP API is, such as `http://127.0.0.1:8884`; empty without one."""
        self.certificate_authority = ""
        """The certificate authority (PEM): the SDK's `server_verification_cert`."""
        if http_port is not None and not self._http_host.is_loopback and not api_token:
            raise ConfigError(
                f"The HTTP API hands out device keys, so on {self._http_host}, which is not loopback, "
                "it needs --api-token (or leave --http-host away)."
            )

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def mqtt_host(self) -> str:
        """The host name in connection strings."""
        return self._names[0]

    @property
    def ca_file(self) -> Path:
        """The certificate authority's file (PEM)."""
        return self._certificates.authority

    @property
    def faults(self) -> FaultSettings:
        """The faults in force."""
        return self.hub.faults.settings

    def set_faults(self, **changes: Any) -> FaultSettings:
        """Change some faults (see FaultSettings) and keep the others; `clear_faults` ends them all."""
        return self.hub.faults.change(**changes)

    def clear_faults(self) -> None:
        """Work as it should again."""
        self.hub.faults.clear()

    async def create_device(
        self,
        device_id: str,
        *,
        thumbprints: Sequence[str] = (),
        primary_key: str = "",
        secondary_key: str = "",
        enabled: bool | None = None,
    ) -> Device:
        """Register a device, or change an existing one.

        With `thumbprints` (SHA-1 or SHA-256 of self-signed certificates, hexadecimal) it signs in by certificate, else
        by keys (Base64; made when not given). What is not given of an existing device stays. A device that may no
        longer sign in as it did loses its link.
        Raises DeviceInvalidError.
        """
        old = self._registry.find(device_id)
        device = await self._registry.put(
            device_id,
            thumbprints=thumbprints,
            primary_key=primary_key,
            secondary_key=secondary_key,
            enabled=enabled,
        )
        if old is not None and (not device.enabled or device.credentials() != old.credentials()):
            self.hub.cut(device_id, "the device's registration changed")
        return device

    async def delete_device(self, device_id: str) -> None:
        """Forget a device, its twin and its waiting messages; its link ends. Raises DeviceNotFoundError."""
        await self._registry.delete(device_id)
        self.hub.cut(device_id, "the device was deleted")

    def devices(self) -> list[Device]:
        """Every registered device, by name."""
        return self._registry.devices()

    def device(self, device_id: str) -> Device:
        """A registered device as it is now, its twin included. Raises DeviceNotFoundError."""
        return self._registry.get(device_id)

    def connection_string(self, device_id: str, *, gateway: str = "") -> str:
        """What a device is configured with. Raises DeviceNotFoundError.

        `gateway` is the address to dial when the hub's host name is not one (`GatewayHostName`).
        """
        device = self._registry.get(device_id)
        credential = "x509=true" if device.authentication == "x509" else f"SharedAccessKey={device.primary_key}"
        suffix = f";GatewayHostName={gateway}" if gateway else ""
        return f"HostName={self.mqtt_host};DeviceId={device_id};{credential}{suffix}"

    async def messages(self, *, device: str | None = None, after: int = 0, limit: int = 1000) -> list[Telemetry]:
        """Up to `limit` messages with a number above `after`, oldest first."""
        return await self._store.messages(device=device, after=after, limit=limit)

    @property
    def last_message_id(self) -> int:
        """The number of the newest message; 0 before the first."""
        return self._store.last_id

    async def wait_arrival(self, after: int) -> None:
        """Wait until there is a message with a number above `after`."""
        await self._store.arrival(after)

    async def follow(self, *, device: str | None = None, after: int = 0) -> AsyncIterator[Telemetry]:
        """Every message with a number above `after`: those that are there, then each as it arrives, without end."""
        while True:
            newest = self._store.last_id
            page = await self._store.messages(device=device, after=after, limit=_PAGE)
            for message in page:
                after = message.id
                yield message
            if len(page) < _PAGE:
                after = max(after, newest)
                await self._store.arrival(after)

    async def wait_for(
        self, count: int, *, device: str | None = None, after: int = 0, timeout_seconds: float = 30.0
    ) -> list[Telemetry]:
        """The first `count` messages with a number above `after`, as soon as there are so many.

        Duplicates count. Raises TimeoutError, which says how many there were.
        """
        found: list[Telemetry] = []
        try:
            async with asyncio.timeout(timeout_seconds):
                async for message in self.follow(device=device, after=after):
                    found.append(message)
                    if len(found) >= count:
                        break
        except TimeoutError as error:
            raise TimeoutError(f"{len(found)} of {count} messages arrived within {timeout_seconds:g} s.") from error
        return found

    async def report(self) -> Report:
        """What arrived, arrived twice, is missing, and how long it took."""
        return await self._store.report()

    def is_connected(self, device_id: str) -> bool:
        """Whether a device has a link."""
        return self.hub.is_connected(device_id)

    async def wait_connected(self, device_id: str, *, connected: bool = True, timeout_seconds: float = 30.0) -> None:
        """Wait until a device has a link (or, with `connected=False`, has none). Raises TimeoutError."""
        await self.hub.wait_connected(device_id, connected=connected, timeout_seconds=timeout_seconds)

    def cut(self, device_id: str | None = None) -> int:
        """Drop the link of one device, or of all; return how many there were."""
        return self.hub.cut(device_id)

    async def invoke_method(
        self,
        device_id: str,
        name: str,
        payload: Any = None,
        *,
        response_timeout_seconds: float = 30.0,
        connect_timeout_seconds: float = 0.0,
    ) -> MethodResult:
        """Call a direct method. Raises DeviceNotFoundError, DeviceOfflineError, MethodTimeoutError."""
        return await self.hub.invoke(
            device_id,
            name,
            payload,
            response_timeout_seconds=response_timeout_seconds,
            connect_timeout_seconds=connect_timeout_seconds,
        )

    async def send_message(
        self,
        device_id: str,
        payload: Any,
        *,
        properties: Mapping[str, str] | None = None,
        system: Mapping[str, str] | None = None,
        life_seconds: float = CLOUD_MESSAGE_LIFE_SECONDS,
    ) -> str:
        """Send a cloud-to-device message (bytes, text, or anything JSON can hold); return its message id.

        It waits for the device, also over restarts of the emulator, until acknowledged or `life_seconds` are over.
        Raises DeviceNotFoundError, QueueFullError, MessageInvalidError.
        """
        body = payload if isinstance(payload, bytes) else decode_payload({"payload": payload})
        return await self.hub.send(device_id, body, system=system, properties=properties, life_seconds=life_seconds)

    def twin(self, device_id: str) -> dict[str, Any]:
        """`{"desired": {…, "$version"}, "reported": {…, "$version"}}`. Raises DeviceNotFoundError."""
        device = self._registry.get(device_id)
        return {"desired": device.desired.document(), "reported": device.reported.document()}

    async def patch_desired(self, device_id: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Merge `patch` into the desired properties, tell the device, and return the twin.

        Raises DeviceNotFoundError and MessageInvalidError.
        """
        await self.hub.patch_desired(device_id, dict(patch))
        return self.twin(device_id)

    async def _start(self) -> None:
        await asyncio.to_thread(self._prepare)
        self._store = await Store.open(self._data / "iothub.db", keep_messages=self._keep_messages)
        self._stack.push_async_callback(self._store.close)
        self._registry = Registry(self._store)
        await self._registry.load()
        self.hub = Hub(
            store=self._store,
            registry=self._registry,
            certificates=self._certificates,
            names=self._names,
            clock=self._clock,
        )
        listener = _listen(self._address, self._port)
        self._stack.callback(listener.close)
        self.mqtt_port = listener.getsockname()[1]
        self._stack.push_async_callback(self.hub.stop)
        await self.hub.start(listener)
        if self._http_port is not None:
            api = HttpApi(self, token=self._api_token, names=self._names)
            self._stack.push_async_callback(api.stop)
            self.http_url = await api.start(str(self._http_host), self._http_port)

    def _prepare(self) -> None:
        """Everything that blocks on the disk."""
        try:
            self._data.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"The emulator cannot keep its data in {self._data}: {error}.") from error
        self._stack.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunningError(
                f"Another emulator uses {self._data}; stop it, or give this one another --data directory."
            ) from error
        self._certificates = ensure_certificates(self._data, self._names)
        self.certificate_authority = self._certificates.authority_pem()


def free_loopback_address() -> str:
    """A 127.x.y.z on which nobody listens at the port that Azure's SDK dials: one for each emulator."""
    generator = random.SystemRandom()
    while True:
        address = f"127.{generator.randint(1, 254)}.{generator.randint(0, 254)}.{generator.randint(2, 254)}"
        with socket.socket() as probe:
            try:
                probe.bind((address, MQTT_PORT))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        return address


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not an IP address to listen on; names go into --hostname.") from error


def _http_default(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return address if address.is_loopback else ipaddress.ip_address("127.0.0.1")


def _listen(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
    try:
        # Only lifts the wait after a restart: two listeners on one address are still refused.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The emulator cannot listen on {address} port {port} ({error.strerror}); "
            "another address such as --host 127.0.0.2 leaves the port as the SDK needs it."
        ) from error
    return listener
