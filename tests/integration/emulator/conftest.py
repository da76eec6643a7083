"""A running emulator, Microsoft's SDK on a thread of its own, and a bare MQTT client for what the SDK never does."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import hashlib
import queue
import ssl
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from amqtt.mqtt.connect import ConnectPacket, ConnectPayload, ConnectVariableHeader
from amqtt.mqtt.subscribe import SubscribePacket
from azure.iot.device import X509
from azure.iot.device.aio import IoTHubDeviceClient
from blockbuster import blockbuster_ctx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from emulator import codec
from emulator.sas import make_token
from emulator.server import Emulator, free_loopback_address

T = TypeVar("T")


@pytest.fixture(autouse=True)
def emulator_blocks_no_loop() -> Iterator[None]:
    """Fail a test in which the emulator blocks the event loop."""
    with blockbuster_ctx("emulator"):
        yield


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Emulator]:
    async with Emulator(data=tmp_path / "iothub", address=free_loopback_address()) as emulator:
        yield emulator


class SdkDevice:
    """Microsoft's asynchronous client on a loop and thread of its own, because its setters block."""

    def __init__(self, make: Callable[[], IoTHubDeviceClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sdk-device", daemon=True)
        self._thread.start()
        self.received: queue.Queue[Any] = queue.Queue()
        self.client = asyncio.run_coroutine_threadsafe(self._make(make), self._loop).result(10)

    async def _make(self, make: Callable[[], IoTHubDeviceClient]) -> IoTHubDeviceClient:
        return make()

    async def run(self, work: Callable[[IoTHubDeviceClient], Awaitable[T]], *, timeout_seconds: float = 30) -> T:
        """Await `work(client)` on the client's loop."""

        async def call() -> T:
            async with asyncio.timeout(timeout_seconds):
                return await work(self.client)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), self._loop))

    async def connect(self) -> None:
        await self.run(lambda client: client.connect())

    async def send(self, message: Any) -> None:
        await self.run(lambda client: client.send_message(message))

    async def listen(self, handler_name: str, handler: Callable[[Any], Awaitable[None]] | None = None) -> None:
        """Set a handler of the SDK; without one, what comes goes to `received`."""

        async def keep(thing: Any) -> None:
            self.received.put(thing)

        async def set_handler(client: IoTHubDeviceClient) -> None:
            setattr(client, handler_name, handler or keep)

        await self.run(set_handler)

    async def next(self) -> Any:
        return await asyncio.to_thread(self.received.get, timeout=15)

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            await self.run(lambda client: client.shutdown(), timeout_seconds=10)
        await asyncio.to_thread(self._stop)
        del self.client

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


DeviceMaker = Callable[..., Awaitable[SdkDevice]]


@pytest.fixture
async def sdk_device() -> AsyncIterator[DeviceMaker]:
    """Make SDK devices, which the fixture shuts down: `await sdk_device(connection_string, authority, **options)`."""
    made: list[SdkDevice] = []

    async def make(connection_string: str, authority: str, **options: Any) -> SdkDevice:
        options = {"connection_retry": False, "auto_connect": False, "keep_alive": 20, **options}

        def make_client() -> IoTHubDeviceClient:
            return IoTHubDeviceClient.create_from_connection_string(
                connection_string, server_verification_cert=authority, **options
            )

        device = await asyncio.to_thread(SdkDevice, make_client)
        made.append(device)
        return device

    yield make
    while made:
        await made.pop().close()
    # paho leaves the socket of a refused connection to the garbage collector, which else complains in another test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
async def device(hub: Emulator, sdk_device: DeviceMaker) -> SdkDevice:
    """The registered device pi-1, connected."""
    await hub.create_device("pi-1")
    made = await sdk_device(hub.connection_string("pi-1"), hub.certificate_authority)
    await made.connect()
    return made


@dataclass
class RawClient:
    """MQTT packets by hand."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def connect(
        self,
        device: str,
        *,
        host: str,
        password: str | None = None,
        username: str | None = None,
        clean: bool = False,
        keep_alive_seconds: int = 60,
    ) -> tuple[int, bool]:
        """Send CONNECT; return the code and whether a session was present."""
        header = ConnectVariableHeader(keep_alive=keep_alive_seconds)
        header.username_flag = True
        header.password_flag = password is not None
        header.clean_session_flag = clean
        username = f"{host}/{device}/?api-version=2019-10-01" if username is None else username
        payload = ConnectPayload(client_id=device, username=username, password=password)
        await self.send(ConnectPacket(variable_header=header, payload=payload).to_bytes())
        kind, body = await self.receive()
        assert kind == 0x20
        return body[1], bool(body[0])

    async def subscribe(self, *filters: tuple[str, int]) -> list[int]:
        """Subscribe; return the codes."""
        await self.send(SubscribePacket.build(list(filters), 1).to_bytes())
        kind, body = await self.receive()
        assert kind == 0x90
        return list(body[2:])

    async def send(self, data: bytes) -> None:
        self.writer.write(bytes(data))
        await self.writer.drain()

    async def receive(self, *, timeout_seconds: float = 15) -> tuple[int, bytes]:
        """The next packet's first byte and body."""
        async with asyncio.timeout(timeout_seconds):
            first = (await self.reader.readexactly(1))[0]
            length = shift = 0
            while True:
                byte = (await self.reader.readexactly(1))[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return first, await self.reader.readexactly(length)

    async def ended(self, *, timeout_seconds: float = 15) -> None:
        """Wait until the hub has closed the link; what it still sends is dropped."""
        async with asyncio.timeout(timeout_seconds):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while await self.reader.read(1024):
                    pass

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                await self.writer.wait_closed()


RawMaker = Callable[..., Awaitable[RawClient]]


@pytest.fixture
async def raw(hub: Emulator) -> AsyncIterator[RawMaker]:
    """Open TLS links: `await raw()`; with `sign_in="pi-1"` it is signed in by the device's key."""
    made: list[RawClient] = []

    async def make(
        *,
        sign_in: str = "",
        certificate: DeviceCertificate | None = None,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        **options: Any,
    ) -> RawClient:
        def make_context() -> ssl.SSLContext:
            context = ssl.create_default_context(cadata=hub.certificate_authority)
            context.maximum_version = version
            if certificate is not None:
                context.load_cert_chain(certificate.certificate, certificate.key)
            return context

        context = await asyncio.to_thread(make_context)
        reader, writer = await asyncio.open_connection(hub.mqtt_host, hub.mqtt_port, ssl=context)
        client = RawClient(reader, writer)
        made.append(client)
        if sign_in:
            code, _ = await client.connect(sign_in, host=hub.mqtt_host, password=token_for(hub, sign_in), **options)
            assert code == codec.ACCEPTED
        return client

    yield make
    for client in made:
        await client.close()


def token_for(hub: Emulator, device: str, *, life_seconds: float = 3600) -> str:
    resource = f"{hub.mqtt_host}/devices/{device}"
    return make_token(resource, hub.device(device).primary_key, int(time.time() + life_seconds))


@pytest.fixture
def token(hub: Emulator) -> Callable[..., str]:
    """Make a device's token: `token("pi-1", life_seconds=5)`."""

    def make(device: str, *, life_seconds: float = 3600) -> str:
        return token_for(hub, device, life_seconds=life_seconds)

    return make


@dataclass(frozen=True)
class DeviceCertificate:
    certificate: Path
    key: Path
    sha256: str
    sha1: str

    @property
    def pem(self) -> str:
        return self.certificate.read_text()

    def for_sdk(self) -> X509:
        return X509(str(self.certificate), str(self.key))


@pytest.fixture
def make_certificate(tmp_path: Path) -> Callable[..., DeviceCertificate]:
    """Make a self-signed device certificate: `make_certificate("pi-1")`."""

    def make(name: str, *, expired: bool = False) -> DeviceCertificate:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=-1 if expired else 1))
            .sign(key, hashes.SHA256())
        )
        der = certificate.public_bytes(serialization.Encoding.DER)
        stem = tmp_path / f"{name}-{hashlib.sha256(der).hexdigest()[:8]}"
        paths = stem.with_suffix(".pem"), stem.with_suffix(".key")
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return DeviceCertificate(*paths, hashlib.sha256(der).hexdigest(), hashlib.sha1(der).hexdigest())

    return make
