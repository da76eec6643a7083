"""Far ends for the sinks' contract: each can be reached, go down, come up again, and tell what it has."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.outbox.memory import open_memory_outbox
from agent.outbox.message import Kind, OutboxMessage, Submission
from agent.outbox.sinks.azure import AzureSettings, AzureSink
from agent.outbox.sinks.base import RefusedMessageError, Sink
from agent.outbox.sinks.memory import MemorySink
from agent.outbox.sinks.mqtt import MqttSettings, MqttSink
from agent.outbox.sinks.portal import PortalSink
from agent.outbox.store import Outbox
from agent.secret import Secret
from emulator.server import Emulator, free_loopback_address

MOSQUITTO = Path("/usr/sbin/mosquitto")

Arrival = tuple[str, int, bytes]
"""Service, sequence, payload."""


class FarEnd(Protocol):
    """What the contract needs to know of a far end."""

    kind: Kind
    refused: Submission
    """A message that this far end refuses for ever."""

    def sink(self) -> Sink: ...

    async def come_up(self) -> None: ...

    async def go_down(self) -> None: ...

    async def arrivals(self, enough: Callable[[list[Arrival]], bool]) -> list[Arrival]:
        """What has arrived, as soon as it is enough."""


class Inbox:
    """Collects arrivals and wakes who waits for them."""

    def __init__(self) -> None:
        self.arrived: list[Arrival] = []
        self._more = asyncio.Condition()

    async def add(self, arrivals: list[Arrival]) -> None:
        async with self._more:
            self.arrived += arrivals
            self._more.notify_all()

    async def wait(self, enough: Callable[[list[Arrival]], bool]) -> list[Arrival]:
        async with self._more:
            await self._more.wait_for(lambda: enough(self.arrived))
        return list(self.arrived)


class MemoryFarEnd:
    kind: Kind = "telemetry"
    refused = Submission(service="odd_py", payload=b"never")

    def __init__(self) -> None:
        self._sink = MemorySink(refuses=lambda message: "never" if message.payload == b"never" else None)

    def sink(self) -> Sink:
        return self._sink

    async def come_up(self) -> None:
        self._sink.come_up()

    async def go_down(self) -> None:
        self._sink.go_down()

    async def arrivals(self, enough: Callable[[list[Arrival]], bool]) -> list[Arrival]:
        count = 0
        while not enough(self._listed()):
            count = len(self._sink.received)
            await self._sink.wait_for(count + 1)
        return self._listed()

    def _listed(self) -> list[Arrival]:
        return [(message.service, message.sequence, message.payload) for message in self._sink.received]


class PortalFarEnd:
    kind: Kind = "fault"
    refused = Submission(service="odd_py", payload=b"never", kind="fault")

    def __init__(self) -> None:
        self._inbox = Inbox()
        self._connected = asyncio.Event()
        self.arrivals = self._inbox.wait

    def sink(self) -> Sink:
        return PortalSink(self._deliver, self._connected)

    async def come_up(self) -> None:
        self._connected.set()

    async def go_down(self) -> None:
        self._connected.clear()

    async def _deliver(self, messages: list[OutboxMessage]) -> None:
        if not self._connected.is_set():
            raise ConnectionError("the session ended")
        if any(message.payload == b"never" for message in messages):
            raise RefusedMessageError("never")
        await self._inbox.add([(message.service, message.sequence, message.payload) for message in messages])


class MqttFarEnd:
    """A real Mosquitto. What it has is what a subscriber with a lasting session gets from it."""

    kind: Kind = "telemetry"
    refused = Submission(service="odd_py", payload=b"x" * 60_000)

    def __init__(self, folder: Path, protocol: Any, envelope: Any) -> None:
        self._folder = folder
        self._protocol = protocol
        self._envelope = envelope
        self._inbox = Inbox()
        self._process: asyncio.subprocess.Process | None = None
        self._subscriber: paho.Client | None = None
        self.arrivals = self._inbox.wait
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def sink(self) -> Sink:
        settings = MqttSettings(
            host="127.0.0.1", port=self._port, tls=False, protocol=self._protocol, envelope=self._envelope
        )
        return MqttSink(settings, node="greenhouse")

    async def come_up(self) -> None:
        config = self._folder / "mosquitto.conf"
        config.write_text(
            f"listener {self._port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n"
            f"persistence_location {self._folder}/\nmax_queued_messages 0\nmax_packet_size 50000\n"
        )
        self._process = await asyncio.create_subprocess_exec(
            str(MOSQUITTO), "-c", str(config), stderr=asyncio.subprocess.PIPE
        )
        assert self._process.stderr is not None
        while b"running" not in (line := await self._process.stderr.readline()):
            assert line, "mosquitto did not start"
        await self._subscribe()

    async def go_down(self) -> None:
        if self._subscriber is not None:
            subscriber, self._subscriber = self._subscriber, None
            subscriber.disconnect()
            await asyncio.to_thread(subscriber.loop_stop)
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(signal.SIGTERM)
            await process.communicate()

    async def _subscribe(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="observer", protocol=paho.MQTTv5)
        client.on_connect = lambda *_: client.subscribe("outstation/#", qos=1)
        client.on_subscribe = lambda *_: loop.call_soon_threadsafe(ready.set)
        client.on_message = lambda _, __, message: asyncio.run_coroutine_threadsafe(
            self._inbox.add([self._arrival(message)]), loop
        )
        await asyncio.to_thread(client.connect, "127.0.0.1", self._port, clean_start=False, properties=properties)
        client.loop_start()
        self._subscriber = client
        await asyncio.wait_for(ready.wait(), 10)

    def _arrival(self, message: paho.MQTTMessage) -> Arrival:
        if self._envelope == "json":
            document = json.loads(message.payload)
            properties, payload = document["properties"], json.dumps(document["payload"]).encode()
        else:
            properties, payload = dict(message.properties.UserProperty), message.payload
        node, service = message.topic.split("/")[1:]
        assert (properties["os-node"], properties["os-service"]) == (node, service)
        return service, int(properties["os-sequence"]), payload


class AzureFarEnd:
    """The emulator, and Azure's own SDK."""

    kind: Kind = "telemetry"
    # Every property counts with its overhead at the SDK, which our own check must therefore be stricter than.
    refused = Submission(service="odd_py", payload=b"x" * 262_000)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._address = free_loopback_address()
        self._up = AsyncExitStack()
        self._connection_string = ""
        self._authority = ""
        self.emulator: Emulator | None = None
        self.events: list[Any] = []

    async def prepare(self) -> None:
        """A hub is known by its certificate and the device's key before it is first reached."""
        await self.come_up()
        assert self.emulator is not None
        await self.emulator.create_device("greenhouse")
        self._connection_string = self.emulator.connection_string("greenhouse")
        self._authority = self.emulator.certificate_authority
        await self.go_down()

    def sink(self) -> Sink:
        async def on_cloud_event(event: Any) -> None:
            self.events.append(event)

        settings = AzureSettings(
            connection_string=Secret(self._connection_string), certificate_authority=self._authority
        )
        return AzureSink(settings, on_cloud_event=on_cloud_event)

    async def come_up(self) -> None:
        self.emulator = await self._up.enter_async_context(
            Emulator(data=self._folder, address=self._address, http_port=None)
        )

    async def go_down(self) -> None:
        self.emulator = None
        await self._up.aclose()

    async def arrivals(self, enough: Callable[[list[Arrival]], bool]) -> list[Arrival]:
        listed: list[Arrival] = []
        if self.emulator is None:
            await self.come_up()
        assert self.emulator is not None
        if not enough(listed):
            async for message in self.emulator.follow():
                properties = message.properties
                listed.append((properties["os-service"], int(properties["os-sequence"]), message.payload))
                if enough(listed):
                    break
        return listed


@pytest.fixture(params=["memory", "portal", "mqtt-5", "mqtt-3.1.1", "azure"])
async def far_end(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FarEnd]:
    """A far end that is down."""
    end: Any
    if request.param == "memory":
        end = MemoryFarEnd()
        await end.go_down()
    elif request.param == "portal":
        end = PortalFarEnd()
    elif request.param == "azure":
        end = AzureFarEnd(tmp_path / "hub")
        await end.prepare()
    else:
        if shutil.which(str(MOSQUITTO)) is None:
            pytest.skip("mosquitto is not installed")
        protocol = request.param.removeprefix("mqtt-")
        end = MqttFarEnd(tmp_path, protocol, "none" if protocol == "5" else "json")
    yield end
    await end.go_down()


@pytest.fixture
async def outbox() -> AsyncIterator[Outbox]:
    outbox = await open_memory_outbox(node="greenhouse")
    yield outbox
    await outbox.close()
