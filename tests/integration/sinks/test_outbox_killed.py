"""SIGKILL at random moments: every answered submission is there, once, and no number is missing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.outbox.message import Submission
from agent.outbox.store import Outbox

ROUNDS = 20

WRITER = """
import asyncio, os, sys
from pathlib import Path
from agent.clock import SystemClock
from agent.outbox.message import Submission
from agent.outbox.store import Outbox

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def produce(outbox, service, first, pipelined):
    waiting = []
    for number in range(first, first + 100_000):
        waiting.append(asyncio.create_task(outbox.submit(Submission(
            service=service, payload=b"%d" % number, producer=service + "-run", producer_sequence=number
        ))))
        if len(waiting) >= pipelined:
            await waiting.pop(0)
            say("stored", service, number + 1 - pipelined)

async def consume(feed):
    while True:
        for message in await feed.take(7):
            say("took", message.service, message.sequence, message.payload.decode())
            await feed.acknowledge([message.id])
            await asyncio.sleep(0)

async def main():
    path, durability, *firsts = sys.argv[1:]
    outbox = await Outbox.open(Path(path), node="n", clock=SystemClock(), durability=durability)
    feed = outbox.feed("cloud", frozenset({"telemetry"}))
    say("ready")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(consume(feed))
        for index, first in enumerate(firsts):
            tasks.create_task(produce(outbox, f"s{index}", int(first), 1 + 10 * index))

asyncio.run(main())
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("durability", ["crash", "power"])
async def test_killed_writer_loses_nothing_and_repeats_nothing(tmp_path: Path, durability: Any) -> None:
    chosen = random.Random(f"outbox {durability}")
    path = tmp_path / "outbox.db"
    answered: dict[str, int] = {"s0": 0, "s1": 0}
    taken: dict[str, dict[int, str]] = defaultdict(dict)
    for _ in range(ROUNDS):
        # As a service's spill does: what was not answered is handed in once more.
        firsts = [str(answered[service] + 1) for service in ("s0", "s1")]
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), durability, *firsts],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        ) as writer:
            assert writer.stdout is not None
            lines_until_the_kill = chosen.randrange(1, 400)
            for count, line in enumerate(writer.stdout):
                if count == lines_until_the_kill:
                    writer.send_signal(signal.SIGKILL)
                what, *rest = line.split()
                if what == "stored":
                    answered[rest[0]] = max(answered[rest[0]], int(rest[1]))
                elif what == "took":
                    service, sequence, payload = rest
                    # Taken again after the kill: the same number is the same message.
                    assert taken[service].setdefault(int(sequence), payload) == payload
            assert writer.wait() == -signal.SIGKILL

    outbox = await Outbox.open(path, node="n", clock=SystemClock(), check_seconds=5)
    assert outbox.recovered_from is None
    feed = outbox.feed("audit", frozenset({"telemetry"}))
    left: dict[str, dict[int, str]] = defaultdict(dict)
    await outbox.submit(Submission(service="end", payload=b""))
    while "end" not in left:
        for message in await feed.take(1000):
            assert message.sequence not in left[message.service]
            left[message.service][message.sequence] = message.payload.decode()
    for service in ("s0", "s1"):
        (stats,) = (stats for stats in outbox.stats().services if stats.service == service)
        found = {**taken[service], **left[service]}
        assert sorted(found) == list(range(1, stats.submitted + 1))
        numbers = [int(payload) for _, payload in sorted(found.items())]
        assert numbers == list(range(1, len(numbers) + 1))
        assert answered[service] <= len(numbers)
        assert answered[service] > ROUNDS
    await outbox.close()
