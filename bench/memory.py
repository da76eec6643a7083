"""Memory of a node at rest: the agent, its template process, its services and its sinks."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path
from typing import Any

from bench import bare_agent, processes
from bench.harness import Aim, Figure, Options, progress
from bench.node import Broker, IotHub, enrolled_node

TITLE = "memory: a node at rest"

_IDLE = """
from base_service import CustomService


class {name}(CustomService):
    async def Start(self):
        await self.SubmitMessage({{"started": True}})
"""
MANY = 10
_FEW = 2


def idle_services(count: int) -> dict[str, str]:
    """Services that send one message and then wait."""
    return {f"Idle{number}.py": _IDLE.format(name=f"Idle{number}") for number in range(1, count + 1)}


async def run(options: Options, folder: Path) -> list[Figure]:
    """Measure trees of processes with one service and with ten, with and without sinks."""
    settle_seconds = options.size(5, 0)
    many = options.size(MANY, _FEW)
    kinds = {"no sink": (1, many), "MQTT sink": (1,), "Azure sink": (1,)}
    taken: dict[tuple[str, int], list[processes.Memory]] = {}
    bare: list[processes.Memory] = []
    async with Broker(folder / "broker") as broker, IotHub(folder / "iothub") as hub:
        device = await hub.device("bench")
        for number in range(options.runs):
            async with bare_agent.running(broker.port) as pid:
                await asyncio.sleep(settle_seconds)
                bare.append(processes.measure_memory([pid]))
            for kind, counts in kinds.items():
                for count in counts:
                    config = broker.sink if kind == "MQTT sink" else ""
                    settings: dict[str, Any] = {"iotHub": device} if kind == "Azure sink" else {}
                    place = folder / f"node-{number}-{kind[:2]}-{count}"
                    async with enrolled_node(place, idle_services(count), config=config, settings=settings) as node:
                        await node.start()
                        await node.services_running(count)
                        if kind != "no sink":
                            await node.sink_connected(kind.split()[0].lower())
                        await asyncio.sleep(settle_seconds)
                        pids = node.command.tree()
                        taken.setdefault((kind, count), []).append(processes.measure_memory(pids))
                        if number == 0:
                            _show(f"{kind}, {count} services", pids)
    return [
        _figure("one service", taken["no sink", 1], bare),
        _figure("one service and the MQTT sink", taken["MQTT sink", 1], bare, Aim("figure", "most", 30)),
        _figure("one service and the Azure sink", taken["Azure sink", 1], bare, Aim("figure", "most", 50)),
        _figure(f"{many} services", taken["no sink", many], bare),
        Figure(
            "each further service",
            "MB",
            [
                (all_of_them.alone - one.alone) / (many - 1) / processes.MEGABYTE
                for one, all_of_them in zip(taken["no sink", 1], taken["no sink", many], strict=True)
            ],
            "bare agent",
            [memory.alone / processes.MEGABYTE for memory in bare],
            Aim("figure", "most", 5),
            note="alone",
        ),
    ]


def _figure(what: str, taken: list[processes.Memory], bare: list[processes.Memory], aim: Aim | None = None) -> Figure:
    alone = statistics.median(memory.alone for memory in taken) / processes.MEGABYTE
    return Figure(
        what,
        "MB",
        [memory.pss / processes.MEGABYTE for memory in taken],
        "bare agent",
        [memory.pss / processes.MEGABYTE for memory in bare],
        aim,
        note=f"{alone:.1f} MB alone",
    )


def _show(what: str, pids: list[int]) -> None:
    progress(f"  {what}:")
    for pid in pids:
        memory = processes.measure_memory([pid])
        sizes = f"PSS {memory.pss / 1e6:5.1f}, alone {memory.alone / 1e6:5.1f}, RSS {memory.rss / 1e6:5.1f} MB"
        progress(f"    {sizes}  {processes.name(pid)[-90:]}")
