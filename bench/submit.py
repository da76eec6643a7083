"""`SubmitMessage` to the outbox, to a broker's acknowledgement and to an IoT Hub's, beside the bare libraries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent.control import ask
from bench import bare_clients
from bench.arrivals import Arrivals
from bench.harness import Aim, Figure, Options, percentile, progress
from bench.node import BenchmarkError, Broker, IotHub, Node, enrolled_node
from bench.remote import Remotes, remotes, script

TITLE = "submit: from a service to the far end"

SERVICE = "submitter_py"
WINDOW = 100
"""Messages that the service, or a bare client, has on their way at once."""
_POLL_SECONDS = 0.05
_STALL_SECONDS = 120.0

_SUBMITTER = script("""
from bench.bare_clients import padding


class Submitter(Remote):
    async def submit(self, count, window, interval=0.0):
        filler = padding({"at": time.perf_counter(), "wall": time.time()})
        numbers = iter(range(count))

        async def worker():
            for _ in numbers:
                if interval:
                    await asyncio.sleep(interval)
                await self.SubmitMessage({"at": time.perf_counter(), "wall": time.time(), "text": filler})

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(window)))
        return [began, time.perf_counter()]
""")


async def run(options: Options, folder: Path) -> list[Figure]:
    """Measure the outbox alone, then each sink."""
    return [
        *await _outbox(options, folder / "outbox"),
        *await _mqtt(options, folder / "mqtt"),
        *await _azure(options, folder / "azure"),
    ]


# --- The outbox alone -------------------------------------------------------------------------------------------------


async def _outbox(options: Options, folder: Path) -> list[Figure]:
    sizes = {WINDOW: options.size(50_000, 500), 1: options.size(5_000, 100)}
    async with contextlib.AsyncExitStack() as stack:
        nodes = {}
        for durability in ("crash", "power"):
            config = f'[outbox]\ndurability = "{durability}"\n'
            nodes[durability] = await stack.enter_async_context(_submitter(folder / durability, config=config))
        ours: dict[tuple[str, int], list[float]] = {}
        bare: dict[tuple[str, int], list[float]] = {}
        for number in range(options.runs):
            for durability, (_, services) in nodes.items():
                for window, count in sizes.items():
                    began, ended = await services.call("Submitter", "submit", count=count, window=window)
                    alone = await bare_clients.measure("sqlite", folder, count, window, durability)
                    ours.setdefault((durability, window), []).append(count / (ended - began))
                    bare.setdefault((durability, window), []).append(alone)
            rates = ", ".join(f"{place[0]} {rates[-1]:,.0f}/s with {place[1]}" for place, rates in ours.items())
            progress(f"  outbox, run {number + 1}: {rates} under way")
    return [
        Figure(
            f"in the outbox, durability `{durability}`, {window} under way",
            "/s",
            rates,
            f"SQLite alone, {window} a commit",
            bare[durability, window],
        )
        for (durability, window), rates in ours.items()
    ]


# --- Sinks ------------------------------------------------------------------------------------------------------------


async def _mqtt(options: Options, folder: Path) -> list[Figure]:
    count, single = options.size(20_000, 300), options.size(300, 20)
    ours, bare, ours_delays, bare_delays = [], [], [], []
    async with Broker(folder / "broker") as broker, _submitter(folder / "node", config=broker.sink) as (node, services):
        await node.sink_connected("mqtt")
        for number in range(options.runs):
            ours.append(await _acknowledged(node, services, "mqtt", count))
            bare.append(await bare_clients.measure("mqtt", broker.port, count, WINDOW, 0))
            async with Arrivals(broker.port) as arrivals:
                await services.call("Submitter", "submit", count=single, window=1, interval=0.01)
                ours_delays.append([at - sent for sent, at in await arrivals.wait(single)])
                await bare_clients.measure("mqtt", broker.port, single, 1, 0.01)
                bare_delays.append([at - sent for sent, at in await arrivals.wait(single)])
            progress(f"  MQTT, run {number + 1}: {ours[-1]:,.0f}/s, paho alone {bare[-1]:,.0f}/s")
    return [
        Figure("acknowledged by the broker", "/s", ours, "paho alone, no disk", bare, Aim("ratio", "least", 0.7)),
        _delay("single message to the broker's subscriber, half within", ours_delays, bare_delays, "paho alone", 50),
        _delay("the same, 99 % within", ours_delays, bare_delays, "paho alone", 99),
    ]


async def _azure(options: Options, folder: Path) -> list[Figure]:
    count, single = options.size(4_000, 100), options.size(200, 10)
    ours, bare, ours_delays, bare_delays = [], [], [], []
    async with IotHub(folder / "iothub") as hub:
        device = await hub.device("bench-node")
        bare_device = folder / "bare-device.json"
        bare_device.write_text(json.dumps(await hub.device("bench-bare")), "utf-8")
        async with _submitter(folder / "node", settings={"iotHub": device}) as (node, services):
            await node.sink_connected("azure")
            for number in range(options.runs):
                ours.append(await _acknowledged(node, services, "azure", count))
                bare.append(await bare_clients.measure("azure", bare_device, count, 50, 0))
                before = await hub.last_message_id()
                await services.call("Submitter", "submit", count=single, window=1, interval=0.01)
                ours_delays.append(await _hub_delays(hub, before, single))
                before = await hub.last_message_id()
                await bare_clients.measure("azure", bare_device, single, 1, 0.01)
                bare_delays.append(await _hub_delays(hub, before, single))
                progress(f"  IoT Hub, run {number + 1}: {ours[-1]:,.0f}/s, Azure's SDK alone {bare[-1]:,.0f}/s")
            report = await hub.get("/report")
            if report["missing"]:
                raise BenchmarkError(f"{report['missing']} messages did not reach the hub.")
    return [
        Figure("acknowledged by the IoT Hub emulator", "/s", ours, "Azure's SDK alone, no disk", bare),
        _delay("single message to the hub, half within", ours_delays, bare_delays, "Azure's SDK alone", 50),
        _delay("the same, 99 % within", ours_delays, bare_delays, "Azure's SDK alone", 99),
    ]


@asynccontextmanager
async def _submitter(
    folder: Path, *, config: str = "", settings: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Node, Remotes]]:
    folder.mkdir(parents=True, exist_ok=True)
    remote = folder / "remote"
    async with (
        remotes(remote) as services,
        enrolled_node(
            folder / "node", {"Submitter.py": _SUBMITTER}, config=config, settings=settings, remote=str(remote)
        ) as node,
    ):
        await node.start()
        await services.connected("Submitter")
        yield node, services


async def _acknowledged(node: Node, services: Remotes, sink: str, count: int) -> float:
    """Messages a second from the first `SubmitMessage` to the far end's last acknowledgement."""
    wanted = await asyncio.to_thread(_acknowledged_by, node, sink) + count
    began, _ = await services.call("Submitter", "submit", count=count, window=WINDOW)
    deadline = time.perf_counter() + _STALL_SECONDS
    while await asyncio.to_thread(_acknowledged_by, node, sink) < wanted:
        if time.perf_counter() > deadline:
            raise BenchmarkError(f"The sink {sink} did not get everything acknowledged.\n{node.command.tail()}")
        await asyncio.sleep(_POLL_SECONDS)
    rate: float = count / (time.perf_counter() - began)
    return rate


def _acknowledged_by(node: Node, sink: str) -> int:
    outbox = ask(node.paths.control_socket, "status")["outbox"]
    return sum(
        entry["acknowledged"].get(sink, 0)
        for entry in outbox["services"]
        if entry["service"] == SERVICE and entry["kind"] == "telemetry"
    )


async def _hub_delays(hub: IotHub, after: int, count: int) -> list[float]:
    messages = await hub.messages(after=after, count=count)
    return [message["arrived"] - message["body"]["wall"] for message in messages]


def _delay(what: str, ours: list[list[float]], bare: list[list[float]], peer: str, part: float) -> Figure:
    return Figure(
        what,
        "ms",
        [percentile(delays, part) * 1000 for delays in ours],
        peer,
        [percentile(delays, part) * 1000 for delays in bare],
    )
