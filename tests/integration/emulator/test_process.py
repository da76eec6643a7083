"""`outstation iothub` as a process: what it prints, how it ends, and what a SIGKILL takes (nothing)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from azure.iot.device import Message, exceptions

from agent.exitcodes import ExitCode
from emulator.server import Emulator, free_loopback_address

# The SDK asks for paho's older callbacks.
pytestmark = pytest.mark.filterwarnings("ignore:Callback API version 1 is deprecated:DeprecationWarning")


class HubProcess:
    """One `outstation iothub`."""

    def __init__(self, process: asyncio.subprocess.Process, ready_file: Path) -> None:
        self.process = process
        self._ready_file = ready_file
        self.ready: dict[str, Any] = {}

    async def line(self) -> str:
        """The next line of its output; empty at the end."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            return (await self.process.stdout.readline()).decode()

    async def until_ready(self) -> None:
        while "next" not in (line := await self.line()):
            assert line, "it ended"
        self.read_ready()

    def read_ready(self) -> None:
        self.ready = json.loads(self._ready_file.read_text())

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        async with (
            aiohttp.ClientSession(self.ready["http_url"]) as session,
            session.request(method, path, json=body) as response,
        ):
            assert response.status < 400
            return await response.json()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start processes: `await start("--host", …)`."""
    started: list[HubProcess] = []

    async def make(*arguments: str, wait: bool = True, stdout: int = asyncio.subprocess.PIPE) -> HubProcess:
        ready_file = tmp_path / f"ready-{len(started)}.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent.cli", "iothub", "--data", str(tmp_path / "iothub"), "--http-port", "0"),
            *("--ready-file", str(ready_file), *arguments),
            stdout=stdout,
            stderr=asyncio.subprocess.STDOUT if stdout == asyncio.subprocess.PIPE else asyncio.subprocess.PIPE,
        )
        hub = HubProcess(process, ready_file)
        started.append(hub)
        if wait:
            await hub.until_ready()
        return hub

    yield make
    for hub in started:
        with contextlib.suppress(ProcessLookupError):
            hub.process.kill()
        await hub.process.communicate()


async def connected(sdk_device, hub: HubProcess, name: str = "pi-1"):
    made = await hub.request("PUT", f"/devices/{name}")
    client = await sdk_device(made["connection_string"], made["certificate_authority"])
    await client.connect()
    return client


async def test_it_says_where_it_is_and_prints_what_arrives(start, sdk_device):
    address = free_loopback_address()
    hub = await start("--host", address)
    assert hub.ready["mqtt_host"] == address
    assert hub.ready["mqtt_port"] == 8883
    assert Path(hub.ready["ca_file"]).read_text().startswith("-----BEGIN CERTIFICATE-----")

    client = await connected(sdk_device, hub)
    message = Message('{"pin": 17}\x1b[31m\n')
    message.custom_properties = {"os-node": "n", "os-stream": "s", "os-service": "readgpio_py", "os-sequence": "1"}
    await client.send(message)

    lines = []
    while not lines or "pin" not in lines[-1]:
        lines.append(await hub.line())
        assert lines[-1]
    assert any("pi-1 connected" in line for line in lines)
    assert 'pi-1  readgpio_py #1  {"pin": 17}\\x1b[31m' in lines[-1]
    assert "\x1b" not in "".join(lines)
    assert "SharedAccess" not in "".join(lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_cleanly_when_asked_to(start, sdk_device, number):
    hub = await start("--host", free_loopback_address(), "--quiet")
    client = await connected(sdk_device, hub)
    await client.send("hello")
    hub.process.send_signal(number)
    lines = []
    while line := await hub.line():
        lines.append(line)
    assert await hub.ended() == ExitCode.OK
    assert any(line.startswith("1 received, 0 duplicates, 0 missing") for line in lines)
    assert any("the hub stops" in line for line in lines)


async def test_it_ends_without_a_traceback_when_its_reader_leaves(start, sdk_device):
    reading, writing = os.pipe()
    hub = await start("--host", free_loopback_address(), wait=False, stdout=writing)
    os.close(writing)
    with os.fdopen(reading) as output:
        while "next" not in await asyncio.to_thread(output.readline):
            pass
    hub.read_ready()

    client = await connected(sdk_device, hub)
    with contextlib.suppress(exceptions.ClientError):
        await client.send("hello")

    assert await hub.ended() == ExitCode.OK
    assert "Traceback" not in (await hub.process.stderr.read()).decode()


async def test_a_second_one_on_the_same_data_is_refused(start, tmp_path):
    async with Emulator(data=tmp_path / "iothub", address=free_loopback_address()):
        hub = await start("--host", free_loopback_address(), wait=False)
        text = await hub.line()
        assert await hub.ended() == ExitCode.ALREADY_RUNNING
    assert "another --data" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--host", "hub.example"), "--hostname"),
        (("--host", "127.0.0.1", "--port", "0", "--http-host", "0.0.0.0"), "--api-token"),
    ],
)
async def test_what_it_cannot_do_is_one_sentence_and_a_status(start, arguments, says):
    hub = await start(*arguments, wait=False)
    text = await hub.line()
    assert says in text
    assert await hub.ended() == ExitCode.CONFIG_INVALID


async def test_a_taken_port_is_one_sentence_and_a_status(start):
    address = free_loopback_address()
    with socket.socket() as taken:
        taken.bind((address, 8883))
        taken.listen()
        hub = await start("--host", address, wait=False)
        assert f"cannot listen on {address} port 8883" in await hub.line()
        assert await hub.ended() == ExitCode.CONFIG_INVALID


async def test_any_port_can_be_had_for_other_clients(start):
    hub = await start("--host", "127.0.0.1", "--port", "0")
    assert hub.ready["mqtt_port"] not in (0, 8883)


class Deliverer:
    """An at-least-once sender on Microsoft's SDK: one client for each connection, everything unacknowledged again."""

    def __init__(self, count: int, sdk_device) -> None:
        self.pending = dict.fromkeys(range(1, count + 1))
        self.acknowledged: set[int] = set()
        self.changed = asyncio.Condition()
        self.hub_is_up = asyncio.Event()
        self._sdk_device = sdk_device

    async def run(self, connection_string: str, authority: str) -> None:
        while self.pending:
            await self.hub_is_up.wait()
            client = await self._sdk_device(connection_string, authority)
            with contextlib.suppress(exceptions.ClientError, exceptions.OperationCancelled, TimeoutError):
                await client.run(lambda sdk: sdk.connect(), timeout_seconds=10)
                while batch := [*self.pending][:20]:
                    await self._send(client, batch)

    async def _send(self, client, batch: list[int]) -> None:
        async def send(sdk, number: int) -> int:
            message = Message(json.dumps({"number": number}), message_id=f"s-{number}")
            message.custom_properties = {
                "os-node": "pi-1",
                "os-stream": "s",
                "os-service": "readgpio_py",
                "os-sequence": str(number),
            }
            await sdk.send_message(message)
            return number

        async def send_all(sdk) -> list[Any]:
            return await asyncio.gather(*(send(sdk, number) for number in batch), return_exceptions=True)

        results = await client.run(send_all, timeout_seconds=20)
        async with self.changed:
            for number in results:
                if isinstance(number, int):
                    self.acknowledged.add(number)
                    self.pending.pop(number, None)
            self.changed.notify_all()
        for failure in results:
            if isinstance(failure, Exception):
                raise failure

    async def has_acknowledged(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.acknowledged) >= count)


async def test_a_killed_hub_loses_nothing_that_it_acknowledged(start, sdk_device):
    address = free_loopback_address()
    hub = await start("--host", address, "--quiet")
    made = await hub.request("PUT", "/devices/pi-1")
    sender = Deliverer(1200, sdk_device)
    sender.hub_is_up.set()
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        group.create_task(sender.run(made["connection_string"], made["certificate_authority"]))
        for kill_at in (200, 500, 800):
            await sender.has_acknowledged(kill_at)
            await hub.end(signal.SIGKILL)
            sender.hub_is_up.clear()
            acknowledged = set(sender.acknowledged)
            hub = await start("--host", address, "--quiet")
            pages = [await hub.request("GET", f"/messages?limit=1000&after={after}") for after in (0, 1000)]
            stored = {message["body"]["number"] for page in pages for message in page["messages"]}
            assert acknowledged <= stored
            sender.hub_is_up.set()

    report = await hub.request("GET", "/report")
    assert (report["distinct"], report["missing"]) == (1200, 0)
    assert report["received"] == report["distinct"] + report["duplicates"]
