"""Messages from one service to another: through a running agent, beside a bare relay of the same frames."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.harness import Aim, Figure, Options, progress
from bench.node import Node, enrolled_node
from bench.processes import measure_activity
from bench.relay import PADDING, Transfer, relay
from bench.remote import Remotes, remotes, script

TITLE = "services: one service to another"

_SENDER = script(f'''
PADDING = "{PADDING}"


class Sender(Remote):
    async def send(self, count, rate):
        began = time.perf_counter()
        for number in range(count):
            if rate and (wait := began + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            await self.SubmitAction("receiver", "take", {{"at": time.perf_counter(), "text": PADDING}})
''')

_RECEIVER = script("""
from bench.relay import Arrivals


class Receiver(Remote):
    async def expect(self, count):
        self.arrivals, self.done = Arrivals(count), asyncio.Event()

    async def take(self, message):
        if self.arrivals.take(message.message[0]["at"]):
            self.done.set()

    async def arrived(self):
        await self.done.wait()
        return self.arrivals.document()
""")


async def run(options: Options, folder: Path) -> list[Figure]:
    """Measure floods and 1,000 messages a second."""
    flood = options.size(200_000, 2_000)
    paced = options.size(5_000, 200)
    ours: list[Transfer] = []
    ours_paced: list[Transfer] = []
    singly: list[Transfer] = []
    singly_paced: list[Transfer] = []
    batches: list[Transfer] = []
    async with (
        remotes(folder / "remote") as services,
        enrolled_node(
            folder / "node", {"Sender.py": _SENDER, "Receiver.py": _RECEIVER}, remote=str(folder / "remote")
        ) as node,
    ):
        await node.start()
        await services.connected("Sender", "Receiver")
        await _transfer(node, services, min(flood, 20_000))
        for number in range(options.runs):
            singly.append(await relay(flood))
            ours.append(await _transfer(node, services, flood))
            batches.append(await relay(flood, batches=True))
            singly_paced.append(await relay(paced, rate=1000))
            ours_paced.append(await _transfer(node, services, paced, rate=1000))
            progress(
                f"  run {number + 1}: {ours[-1].per_second:,.0f}/s, bare relay {singly[-1].per_second:,.0f}/s one by "
                f"one and {batches[-1].per_second:,.0f}/s in batches"
            )
    rate = [transfer.per_second for transfer in ours]
    return [
        Figure(
            "messages, as fast as they go",
            "/s",
            rate,
            "bare relay, one by one",
            [transfer.per_second for transfer in singly],
            Aim("ratio", "least", 0.5),
        ),
        Figure(
            "the same",
            "/s",
            rate,
            "bare relay, in batches",
            [transfer.per_second for transfer in batches],
        ),
        Figure(
            "processor time for each message",
            "µs",
            [transfer.cpu_seconds * 1e6 for transfer in ours],
            "bare relay, one by one",
            [transfer.cpu_seconds * 1e6 for transfer in singly],
        ),
        _latency("delay at 1,000/s, half of all within", ours_paced, singly_paced, 0),
        _latency("delay at 1,000/s, 99 % within", ours_paced, singly_paced, 1),
        _latency("delay as fast as they go, half of all within", ours, singly, 0),
        _latency("delay as fast as they go, 99 % within", ours, singly, 1),
    ]


async def _transfer(node: Node, services: Remotes, count: int, *, rate: float = 0.0) -> Transfer:
    await services.call("Receiver", "expect", count=count)
    pids = node.command.tree()
    before = measure_activity(pids)
    async with asyncio.timeout(300):
        _, (per_second, p50, p99) = await asyncio.gather(
            services.call("Sender", "send", count=count, rate=rate), services.call("Receiver", "arrived")
        )
    cpu_seconds = (measure_activity(pids) - before).cpu_seconds
    return Transfer(per_second, (p50, p99), cpu_seconds / count)


def _latency(what: str, ours: list[Transfer], bare: list[Transfer], index: int) -> Figure:
    return Figure(
        what,
        "µs",
        [transfer.latencies[index] * 1e6 for transfer in ours],
        "bare relay, one by one",
        [transfer.latencies[index] * 1e6 for transfer in bare],
    )
