"""Processor time and wake-ups of a node that has nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

from bench import bare_agent, processes
from bench.harness import Aim, Figure, Options, progress
from bench.memory import idle_services
from bench.node import Broker, IotHub, enrolled_node

TITLE = "idle: a node with nothing to do"


async def run(options: Options, folder: Path) -> list[Figure]:
    """Watch three nodes, each with one idle service and signed in to its portal, and a bare agent, all at once."""
    seconds = options.size(30, 2)
    settle_seconds = options.size(10, 1)
    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(folder / "broker"))
        hub = await stack.enter_async_context(IotHub(folder / "iothub"))
        device = await hub.device("bench")
        roots = {"bare agent": await stack.enter_async_context(bare_agent.running(broker.port))}
        for kind in ("no sink", "MQTT sink", "Azure sink"):
            config = broker.sink if kind == "MQTT sink" else ""
            settings: dict[str, Any] = {"iotHub": device} if kind == "Azure sink" else {}
            node = await stack.enter_async_context(
                enrolled_node(folder / kind.split()[0], idle_services(1), config=config, settings=settings)
            )
            await node.start()
            await node.services_running(1)
            if kind != "no sink":
                await node.sink_connected(kind.split()[0].lower())
            roots[kind] = node.command.pid
        await asyncio.sleep(settle_seconds)
        trees = {kind: processes.tree(root) for kind, root in roots.items()}
        spent: dict[str, list[processes.Activity]] = {kind: [] for kind in roots}
        elapsed = []
        for number in range(options.runs):
            before = {kind: processes.measure_activity(pids) for kind, pids in trees.items()}
            threads = {kind: processes.threads(pids) for kind, pids in trees.items()}
            began = time.perf_counter()
            await asyncio.sleep(seconds)
            elapsed.append(time.perf_counter() - began)
            for kind, pids in trees.items():
                spent[kind].append(processes.measure_activity(pids) - before[kind])
            if number == 0:
                _show(threads, {kind: processes.threads(pids) for kind, pids in trees.items()}, elapsed[0])
    return [
        figure
        for kind in ("no sink", "MQTT sink", "Azure sink")
        for figure in _figures(kind, spent[kind], spent["bare agent"], elapsed)
    ]


def _figures(
    kind: str, ours: list[processes.Activity], bare: list[processes.Activity], elapsed: list[float]
) -> list[Figure]:
    aim = Aim("figure", "most", 0.1)

    def share(spent: list[processes.Activity]) -> list[float]:
        return [activity.cpu_seconds / time_ * 100 for activity, time_ in zip(spent, elapsed, strict=True)]

    def wakeups(spent: list[processes.Activity]) -> list[float]:
        return [activity.wakeups / time_ for activity, time_ in zip(spent, elapsed, strict=True)]

    return [
        Figure(f"share of a core, {kind}", "%", share(ours), "bare agent", share(bare), aim),
        Figure(f"wake-ups, {kind}", "/s", wakeups(ours), "bare agent", wakeups(bare)),
    ]


def _show(
    before: dict[str, dict[str, processes.Activity]], after: dict[str, dict[str, processes.Activity]], elapsed: float
) -> None:
    """Who woke up, thread by thread."""
    for kind, threads in after.items():
        progress(f"  {kind}:")
        for name, activity in threads.items():
            spent = activity - before[kind].get(name, processes.Activity(0, 0, 0))
            if spent.wakeups:
                progress(f"    {spent.wakeups / elapsed:6.2f} wake-ups/s, {spent.cpu_seconds * 1000:6.1f} ms  {name}")
