"""The MQTT sink against a real Mosquitto: TLS, certificates, passwords, and what a subscriber sees."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion

from agent.errors import ConfigError
from agent.outbox.memory import open_memory_outbox
from agent.outbox.message import Submission
from agent.outbox.sinks.mqtt import MqttSettings, MqttSink
from agent.outbox.store import Outbox
from agent.secret import Secret

MOSQUITTO = Path("/usr/sbin/mosquitto")
pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not MOSQUITTO.exists(), reason="mosquitto is not installed"),
]


class Certificates:
    """A throw-away authority and what it signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.authority = folder / "ca.pem"
        self._certificate = self._sign("test authority", self._key.public_key(), authority=True)
        self.authority.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, key_file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(self._sign(name, key.public_key()).public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, key_file

    def _sign(self, name: str, public_key: Any, *, authority: bool = False) -> x509.Certificate:
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        begin = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=9000))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


@asynccontextmanager
async def mosquitto(folder: Path, *lines: str) -> AsyncIterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    config = folder / "mosquitto.conf"
    config.write_text("\n".join([f"listener {port} 127.0.0.1", "user root", *lines, ""]))
    process = await asyncio.create_subprocess_exec(str(MOSQUITTO), "-c", str(config), stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    while b"running" not in (line := await process.stderr.readline()):
        assert line, "mosquitto did not start"
    try:
        yield port
    finally:
        process.terminate()
        await process.communicate()


@asynccontextmanager
async def subscriber(port: int, prepare: Any = lambda client: None) -> AsyncIterator[asyncio.Queue[paho.MQTTMessage]]:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    arrived: asyncio.Queue[paho.MQTTMessage] = asyncio.Queue()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    prepare(client)
    client.on_connect = lambda *_: client.subscribe("#", qos=1)
    client.on_subscribe = lambda *_: loop.call_soon_threadsafe(ready.set)
    client.on_message = lambda _, __, message: loop.call_soon_threadsafe(arrived.put_nowait, message)
    await asyncio.to_thread(client.connect, "127.0.0.1", port)
    client.loop_start()
    try:
        await asyncio.wait_for(ready.wait(), 10)
        yield arrived
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


@asynccontextmanager
async def running(outbox: Outbox, settings: MqttSettings, node: str = "greenhouse") -> AsyncIterator[MqttSink]:
    sink = MqttSink(settings, node=node)
    task = asyncio.create_task(sink.run(outbox.feed(sink.name, sink.kinds)))
    try:
        yield sink
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=20)
        assert task.cancelled(), task


async def error_of(sink: MqttSink, outbox: Outbox) -> str:
    async with asyncio.timeout(20):
        while not sink.status().last_error:
            await outbox.flush()
    return sink.status().last_error


@pytest.fixture
async def outbox() -> AsyncIterator[Outbox]:
    outbox = await open_memory_outbox(node="green house/1")
    yield outbox
    await outbox.close()


async def test_subscriber_of_version_5_gets_payload_and_properties(tmp_path, outbox) -> None:
    async with mosquitto(tmp_path, "allow_anonymous true") as port, subscriber(port) as arrived:
        settings = MqttSettings(host="127.0.0.1", port=port, tls=False, topic="plant/{node}/{service}/{kind}/{lane}")
        async with running(outbox, settings):
            await outbox.submit(
                Submission(service="readgpio_py", payload=b"\x00\xff", content_type="x/y", properties={"room": "Küche"})
            )
            got = await asyncio.wait_for(arrived.get(), 20)
    assert (got.topic, got.payload, got.qos) == ("plant/green house_1/readgpio_py/telemetry/live", b"\x00\xff", 1)
    properties = dict(got.properties.UserProperty)
    assert (got.properties.ContentType, properties["room"], properties["os-sequence"]) == ("x/y", "Küche", "1")
    assert properties["os-message-id"] == f"{outbox.stream}-readgpio_py-t1"


@pytest.mark.parametrize(
    ("payload", "content_type", "expected"),
    [
        (b'{"pin": 17}', "application/json", {"payload": {"pin": 17}}),
        ("21,5 °C".encode(), "text/plain", {"payload": "21,5 °C"}),
        (b"{broken", "application/json", {"payload": "{broken"}),
        (b"\xff\xfe", "application/octet-stream", {"payloadBase64": "//4="}),
    ],
)
async def test_envelope_holds_what_version_3_has_no_place_for(
    tmp_path, outbox, payload, content_type, expected
) -> None:
    async with mosquitto(tmp_path, "allow_anonymous true") as port, subscriber(port) as arrived:
        settings = MqttSettings(host="127.0.0.1", port=port, tls=False, protocol="3.1.1", envelope="json")
        async with running(outbox, settings):
            await outbox.submit(Submission(service="s_py", payload=payload, content_type=content_type))
            document = json.loads((await asyncio.wait_for(arrived.get(), 20)).payload)
    assert document["id"] == f"{outbox.stream}-s_py-t1"
    assert document["properties"]["os-sequence"] == "1"
    assert {key: document[key] for key in expected} == expected


async def test_client_certificate_signs_in_over_verified_tls(tmp_path, outbox) -> None:
    certificates = Certificates(tmp_path)
    server_certificate, server_key = certificates.issue("server")
    certificate_file, key_file = certificates.issue("node")

    def prepare(client: paho.Client) -> None:
        context = ssl.create_default_context(cafile=certificates.authority)
        context.load_cert_chain(certificate_file, key_file)
        client.tls_set_context(context)

    async with (
        mosquitto(
            tmp_path,
            f"cafile {certificates.authority}",
            f"certfile {server_certificate}",
            f"keyfile {server_key}",
            "require_certificate true",
            "use_identity_as_username true",
        ) as port,
        subscriber(port, prepare) as arrived,
    ):
        settings = MqttSettings(
            host="127.0.0.1",
            port=port,
            certificate_authority_file=certificates.authority,
            certificate_file=certificate_file,
            key_file=key_file,
        )
        async with running(outbox, settings):
            await outbox.submit(Submission(service="s_py", payload=b"1"))
            assert (await asyncio.wait_for(arrived.get(), 20)).payload == b"1"


# paho leaves a socket whose handshake failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_broker_with_an_unknown_certificate_gets_nothing(tmp_path, outbox) -> None:
    certificates = Certificates(tmp_path)
    server_certificate, server_key = certificates.issue("server")
    lines = (f"certfile {server_certificate}", f"keyfile {server_key}", "allow_anonymous true")
    async with (
        mosquitto(tmp_path, *lines) as port,
        running(outbox, MqttSettings(host="127.0.0.1", port=port)) as sink,
    ):
        await outbox.submit(Submission(service="s_py", payload=b"1"))
        assert "certificate verify failed" in await error_of(sink, outbox)
        assert (sink.status().sent, sink.status().connects) == (0, 0)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_refused_password_is_reported_and_does_not_show(tmp_path, outbox, protocol, caplog) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    passwords.chmod(0o600)
    settings: dict[str, Any] = {"username": "node", "password": Secret("hunter2"), "protocol": protocol}
    async with (
        mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}") as port,
        running(outbox, MqttSettings(host="127.0.0.1", port=port, tls=False, **settings)) as sink,
    ):
        error = await error_of(sink, outbox)
    assert "refused the connection" in error
    assert "hunter2" not in f"{caplog.text}{error}{sink._settings}"


async def test_broker_that_does_not_exist_is_reported(outbox) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with running(outbox, MqttSettings(host="127.0.0.1", port=port, tls=False)) as sink:
        assert "refused" in await error_of(sink, outbox)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"host": ""}, "host"),
        ({"topic": "a/{place}"}, "place"),
        ({"topic": "a/#"}, "topic"),
        ({"topic": "a/{node"}, "topic"),
        ({"window": 0}, "window"),
        ({"certificate_file": Path("x")}, "key_file"),
    ],
)
def test_setting_that_cannot_be_is_refused_by_name(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        MqttSettings(**{"host": "broker.example", **changes})
