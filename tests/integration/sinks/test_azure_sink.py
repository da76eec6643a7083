"""The Azure sink with Azure's own SDK against the emulator, and everything that goes wrong on the way."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import ConfigError
from agent.outbox.limits import check_size
from agent.outbox.memory import open_memory_outbox
from agent.outbox.message import Submission
from agent.outbox.sinks.azure import AzureSettings, AzureSink, hub_message_id
from agent.outbox.sinks.cloud import CloudMessage, MethodAnswer, MethodCall, TwinUpdate
from agent.outbox.store import Outbox
from agent.secret import Secret
from emulator.server import Emulator, free_loopback_address

pytestmark = pytest.mark.timeout(90)
WAIT = 40


class CloudEvents:
    """Keeps what the cloud said, and answers direct methods."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()

    async def __call__(self, event: Any) -> MethodAnswer | None:
        if isinstance(event, MethodCall):
            if event.name == "breaks":
                raise RuntimeError("the valve is stuck")
            if event.name == "strange":
                return MethodAnswer(payload=object())
            if event.name == "unknown":
                return None
            return MethodAnswer(status=202, payload={"got": event.payload})
        await self.queue.put(event)
        return None

    async def next(self, kind: type) -> Any:
        async with asyncio.timeout(WAIT):
            while not isinstance(event := await self.queue.get(), kind):
                pass
        return event


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Emulator]:
    async with Emulator(data=tmp_path / "hub", address=free_loopback_address(), http_port=None) as hub:
        await hub.create_device("pi-1")
        yield hub


@pytest.fixture
async def outbox() -> AsyncIterator[Outbox]:
    outbox = await open_memory_outbox(node="greenhouse")
    yield outbox
    await outbox.close()


def settings_for(hub: Emulator, **changes: Any) -> AzureSettings:
    return AzureSettings(
        **{
            "connection_string": Secret(hub.connection_string("pi-1")),
            "certificate_authority": hub.certificate_authority,
            **changes,
        }
    )


@asynccontextmanager
async def running(outbox: Outbox, settings: AzureSettings, events: Any = None) -> AsyncIterator[AzureSink]:
    sink = AzureSink(settings, on_cloud_event=events or CloudEvents())
    task = asyncio.create_task(sink.run(outbox.feed(sink.name, sink.kinds)))
    try:
        yield sink
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=20)
        assert task.cancelled(), task
        outbox.drop_feed(sink.name)


async def submit(outbox: Outbox, count: int) -> None:
    await outbox.submit_many([Submission(service="readgpio_py", payload=b"%d" % number) for number in range(count)])


async def wait_until(condition: Callable[[], bool], outbox: Outbox) -> None:
    """Go round the outbox's writer, an event of its own, until the condition holds."""
    async with asyncio.timeout(WAIT):
        while not condition():
            await outbox.flush()


async def distinct(hub: Emulator, count: int) -> None:
    async with asyncio.timeout(WAIT):
        seen: set[str] = set()
        async for message in hub.follow():
            seen.add(message.properties["os-sequence"])
            if len(seen) == count:
                return


async def test_message_carries_what_the_far_end_needs(hub, outbox) -> None:
    async with running(outbox, settings_for(hub)):
        await outbox.submit(
            Submission(
                service="readgpio_py",
                payload="21,5 °C".encode("utf-16"),
                content_type="text/plain",
                content_encoding="utf-16",
                properties={"room": "Küche/1 & 2"},
            )
        )
        (got,) = await hub.wait_for(1)
    assert got.payload.decode("utf-16") == "21,5 °C"
    assert got.system == {
        "message_id": f"{outbox.stream}-readgpio_py-t1",
        "content_type": "text/plain",
        "content_encoding": "utf-16",
    }
    created = datetime.datetime.fromisoformat(got.properties.pop("iothub-creation-time-utc"))
    assert abs(created.timestamp() - got.arrived) < 30
    assert got.properties.pop("os-boot")
    assert got.properties == {
        "os-node": "greenhouse",
        "os-service": "readgpio_py",
        "os-sequence": "1",
        "os-stream": outbox.stream,
        "room": "Küche/1 & 2",
    }


async def test_largest_message_that_passes_the_check_passes_the_sdk_and_the_hub(hub, outbox) -> None:
    properties = {f"property-{number}": "ü" * 40 for number in range(20)}
    size = 262_144
    while True:
        largest = Submission(service="readgpio_py", payload=b"x" * size, properties=properties)
        try:
            check_size(largest)
            break
        except ValueError:
            size -= 16
    async with running(outbox, settings_for(hub)) as sink:
        await outbox.submit(largest)
        (got,) = await hub.wait_for(1)
        assert (len(got.payload), sink.status().parked) == (size, 0)


async def test_twin_is_told_whole_at_the_connection_and_after_each_change(hub, outbox) -> None:
    await hub.patch_desired("pi-1", {"interval": 5, "limits": {"low": 1, "high": 9}})
    events = CloudEvents()
    async with running(outbox, settings_for(hub), events) as sink:
        first = await events.next(TwinUpdate)
        assert first.desired["limits"] == {"low": 1, "high": 9}
        await hub.patch_desired("pi-1", {"limits": {"low": None, "high": 10}})
        changed = await events.next(TwinUpdate)
        assert (changed.desired["interval"], changed.desired["limits"]) == (5, {"high": 10})
        await sink.report({"temperature": 21})
        assert hub.twin("pi-1")["reported"]["temperature"] == 21
        await hub.patch_desired("pi-1", {"interval": 6})
        hub.cut()
        while (await events.next(TwinUpdate)).reported.get("temperature") != 21:
            pass


async def test_direct_method_gets_the_handlers_answer_or_the_reason_why_not(hub, outbox) -> None:
    events = CloudEvents()
    async with running(outbox, settings_for(hub), events):
        await events.next(TwinUpdate)
        answer = await hub.invoke_method("pi-1", "readgpio.Read", {"pin": 17})
        assert (answer.status, answer.payload) == (202, {"got": {"pin": 17}})
        assert (await hub.invoke_method("pi-1", "unknown")).status == 404
        broken = await hub.invoke_method("pi-1", "breaks")
        assert (broken.status, broken.payload) == (500, {"error": "RuntimeError: the valve is stuck"})
        strange = await hub.invoke_method("pi-1", "strange")
        assert strange.status == 500
        assert "cannot be sent as JSON" in strange.payload["error"]


async def test_message_from_the_cloud_reaches_the_handler_also_when_sent_while_offline(hub, outbox) -> None:
    events = CloudEvents()
    async with running(outbox, settings_for(hub), events):
        await events.next(TwinUpdate)
        await hub.send_message("pi-1", {"open": True}, properties={"service": "valve"})
        got = await events.next(CloudMessage)
        assert (got.payload, got.properties) == (b'{"open":true}', {"service": "valve"})
    await hub.send_message("pi-1", "later")
    async with running(outbox, settings_for(hub), events):
        assert (await events.next(CloudMessage)).payload == b"later"


async def test_report_without_a_connection_is_refused(hub, outbox) -> None:
    sink = AzureSink(settings_for(hub), on_cloud_event=CloudEvents())
    with pytest.raises(ConnectionError, match="not connected"):
        await sink.report({"temperature": 21})


async def test_killed_process_is_replaced_and_nothing_is_missing(hub, outbox) -> None:
    async with running(outbox, settings_for(hub)) as sink:
        await submit(outbox, 1500)
        await hub.wait_for(200)
        first = sink.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await distinct(hub, 1500)
        assert sink.pid not in (None, first)
    report = await hub.report()
    assert (report.distinct, report.missing) == (1500, 0)


async def test_stopped_process_is_killed_and_replaced(hub, outbox, monkeypatch) -> None:
    monkeypatch.setattr("agent.outbox.sinks.azure.SLACK_SECONDS", 0.5)
    async with running(outbox, settings_for(hub, stall_seconds=1.0)) as sink:
        await submit(outbox, 10)
        await hub.wait_for(10)
        first = sink.pid
        assert first is not None
        # As wedged as can be: it neither reads, nor writes, nor ends.
        os.kill(first, signal.SIGSTOP)
        await submit(outbox, 10)
        await distinct(hub, 20)
        assert sink.pid != first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


async def test_withheld_acknowledgements_end_the_connection_and_nothing_is_acknowledged_meanwhile(hub, outbox) -> None:
    hub.set_faults(drop_pubacks=True)
    async with running(outbox, settings_for(hub, stall_seconds=1.0)) as sink:
        await submit(outbox, 15)
        await distinct(hub, 15)
        await wait_until(lambda: "acknowledged nothing" in sink.status().last_error, outbox)
        assert (sink.status().acknowledged, outbox.stats().depth) == (0, 15)
        hub.clear_faults()
        await wait_until(lambda: outbox.stats().depth == 0, outbox)
    assert (await hub.report()).missing == 0
    assert sink.status().parked == 0


async def test_connection_that_is_cut_time_after_time_loses_nothing(hub, outbox) -> None:
    hub.set_faults(cut_after=120)
    async with running(outbox, settings_for(hub)) as sink:
        await submit(outbox, 500)
        await distinct(hub, 500)
        await wait_until(lambda: outbox.stats().depth == 0, outbox)
        assert sink.status().connects > 3
    assert (await hub.report()).missing == 0


@pytest.mark.parametrize("code", [3, 5, "tcp"])
async def test_hub_that_refuses_is_tried_again_until_it_accepts(hub, outbox, code) -> None:
    hub.set_faults(refuse_connections=code)
    async with running(outbox, settings_for(hub)) as sink:
        await submit(outbox, 3)
        await wait_until(lambda: bool(sink.status().last_error), outbox)
        hub.clear_faults()
        await distinct(hub, 3)


async def test_wrong_key_is_reported_and_no_secret_shows(hub, outbox, caplog, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    key = "d3Jvbmcga2V5IHdyb25nIGtleSB3cm9uZyBrZXk="
    connection_string = Secret(f"HostName={hub.mqtt_host};DeviceId=pi-1;SharedAccessKey={key}")
    settings = settings_for(hub, connection_string=connection_string)
    async with running(outbox, settings) as sink:
        await wait_until(lambda: bool(sink.status().last_error), outbox)
        assert "Credentials invalid" in sink.status().last_error
    output = capfd.readouterr()
    for text in (caplog.text, output.out, output.err, repr(settings), str(settings), sink.status().last_error):
        assert key not in text


async def test_unknown_certificate_is_reported(hub, outbox) -> None:
    async with running(outbox, settings_for(hub, certificate_authority="")) as sink:
        await wait_until(lambda: bool(sink.status().last_error), outbox)
        assert "certificate" in sink.status().last_error.lower()


async def test_device_with_a_certificate_signs_in(hub, outbox, tmp_path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi-x")])
    now = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=9000))
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = tmp_path / "pi-x.pem", tmp_path / "pi-x.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    await hub.create_device("pi-x", thumbprints=[certificate.fingerprint(hashes.SHA256()).hex()])
    settings = AzureSettings(
        hostname=hub.mqtt_host,
        device_id="pi-x",
        certificate_file=certificate_file,
        key_file=key_file,
        certificate_authority=hub.certificate_authority,
    )
    async with running(outbox, settings):
        await submit(outbox, 5)
        assert len(await hub.wait_for(5, device="pi-x")) == 5


async def test_hub_behind_a_gateway_name_is_reached(tmp_path, outbox) -> None:
    address = free_loopback_address()
    async with Emulator(
        data=tmp_path / "hub", address=address, hostnames=["greenhouse.azure-devices.net"], http_port=None
    ) as hub:
        await hub.create_device("pi-1")
        connection_string = Secret(hub.connection_string("pi-1", gateway=address))
        async with running(outbox, settings_for(hub, connection_string=connection_string)):
            await submit(outbox, 2)
            await hub.wait_for(2)


async def test_process_ends_with_its_parent(hub, outbox) -> None:
    async with running(outbox, settings_for(hub)) as sink:
        await submit(outbox, 1)
        await hub.wait_for(1)
        process = sink._process
        assert process is not None
        # What the kernel does when the parent dies.
        process._writer.transport.abort()
        await hub.wait_connected("pi-1", connected=False)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("HostName=h;DeviceId=d", "SharedAccessKey"),
        ("nonsense", "HostName"),
        ("HostName=h;SharedAccessKey=k", "DeviceId"),
    ],
)
def test_connection_string_that_lacks_something_names_it_and_not_its_content(text: str, missing: str) -> None:
    with pytest.raises(ConfigError, match=missing) as refusal:
        AzureSettings(connection_string=Secret(text))
    assert "nonsense" not in str(refusal.value)


def test_message_id_is_made_acceptable_to_the_hub() -> None:
    assert hub_message_id("abc-readgpio_py-t1") == "abc-readgpio_py-t1"
    assert hub_message_id("abc-füllstand_py-t1") == "abc-f%C3%BCllstand_py-t1"
    assert len(hub_message_id("x" * 200)) == 64
