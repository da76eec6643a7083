"""The agent dies under its services: what they submitted is saved, and the next agent takes it in exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.clock import SystemClock
from agent.orchestrator.spill import take_in_spills
from agent.outbox.message import Submission
from agent.outbox.store import Outbox
from agent.paths import Paths

AGENT = """
import asyncio, sys
from pathlib import Path
from agent.clock import SystemClock
from agent.hub.protocol import ServiceConfig
from agent.orchestrator.orchestrator import Orchestrator, ServiceSpec
from agent.outbox.store import Outbox
from agent.paths import Paths

ACKNOWLEDGED, COMMITTED = 50, 100

async def main():
    folder = Path(sys.argv[1])
    paths = Paths(state=folder / "state", runtime=folder / "run")
    paths.state.mkdir()
    outbox = await Outbox.open(paths.outbox, node="shed", clock=SystemClock())

    def submit_many(submissions, callback):
        if submissions[-1].producer_sequence <= ACKNOWLEDGED:
            outbox.submit_many_nowait(submissions, callback)
            return
        # The rest is committed up to a number, never acknowledged.
        for submission in submissions:
            if submission.producer_sequence <= COMMITTED:
                last = submission.producer_sequence == COMMITTED
                say = (lambda *_: print("half way", flush=True)) if last else (lambda *_: None)
                outbox.submit_many_nowait([submission], say)

    orchestrator = Orchestrator(
        paths=paths, clock=SystemClock(), submit_many=submit_many, built_ins=[],
        log=lambda record: print(record.text, flush=True), settings=dict, on_state=lambda status: None,
    )
    running = asyncio.create_task(orchestrator.run())
    script = folder / "Meter.py"
    await orchestrator.apply([ServiceSpec("meter_py", "Meter", script.name, "0.1", script, "", ServiceConfig())])
    await running

asyncio.run(main())
"""

METER = """
import asyncio, os, time
from base_service import CustomService

class Meter(CustomService):
    async def Start(self):
        await self.Debug(f"pid {os.getpid()}")
        await asyncio.gather(*(self.SubmitMessage({"number": number}) for number in range(1, 51)))
        self.tasks = [asyncio.create_task(self.SubmitMessage({"number": number})) for number in range(51, 301)]
        await asyncio.sleep(0.2)
        await self.Debug("handed in")
        BLOCK
"""


async def run_agent_and_kill_it(folder: Path, *, block: str, before_the_kill: Callable[[], None] = lambda: None) -> int:
    """Kill the agent when half of the submissions are committed; return the pidfd of the service's process."""
    (folder / "Meter.py").write_text(METER.replace("BLOCK", block))
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None
    pid = None
    wanted = {"half way", "handed in"}
    async with asyncio.timeout(20):
        while wanted:
            line = (await agent.stdout.readline()).decode()
            assert line, "the agent ended by itself"
            line = line.strip()
            wanted.discard(line)
            if line.startswith("pid "):
                pid = int(line.removeprefix("pid "))
    assert pid is not None
    service = os.pidfd_open(pid)
    before_the_kill()
    agent.send_signal(signal.SIGKILL)
    await agent.wait()
    return service


async def end_of(process: int) -> float:
    """Wait for the end of a process by its pidfd; returns for how many seconds."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    ended = asyncio.Event()
    loop.add_reader(process, ended.set)
    async with asyncio.timeout(10):
        await ended.wait()
    loop.remove_reader(process)
    os.close(process)
    return loop.time() - start


def spilled(paths: Paths) -> list[Submission]:
    (path,) = paths.spill.glob("*.msgpack")
    return msgspec.msgpack.decode(path.read_bytes(), type=list[Submission])


@pytest.mark.parametrize(
    ("block", "least", "most"), [("", 0, 3), ("time.sleep(1000)", 3, 7)], ids=["loop turns", "loop is blocked"]
)
async def test_what_was_not_acknowledged_is_taken_in_exactly_once_and_in_order(
    tmp_path: Path, paths: Paths, block: str, least: float, most: float
) -> None:
    outlived = await end_of(await run_agent_and_kill_it(tmp_path, block=block))
    assert least <= outlived <= most
    numbers = [submission.producer_sequence for submission in spilled(paths)]
    assert numbers == list(range(51, 301))

    outbox = await Outbox.open(paths.outbox, node="shed", clock=SystemClock())
    feed = outbox.feed("test", frozenset({"telemetry"}))
    assert await take_in_spills(paths, outbox.submit_many) == len(numbers)
    assert not list(paths.spill.iterdir())

    messages: list[Any] = []
    async with asyncio.timeout(10):
        while len(messages) < 300:
            messages += await feed.take(1000)
    assert [msgspec.json.decode(message.payload)["number"] for message in messages] == list(range(1, 301))
    await outbox.close()


async def test_next_agents_process_waits_for_the_one_before_and_comes_after_its_messages(
    tmp_path: Path, node: Any
) -> None:
    before = await run_agent_and_kill_it(tmp_path, block="time.sleep(1000)")
    await node.run(node.spec(METER.replace("BLOCK", "")))
    await node.line("handed in")
    # It had to wait until the blocked process was gone, so this is over at once.
    assert await end_of(before) < 0.1
    await node.until(lambda: len(node.submissions) == 250 + 300)
    producers = [one.producer for one in node.submissions]
    assert producers == sorted(producers, key=producers.index)
    assert [one.producer_sequence for one in node.submissions][-300:] == list(range(1, 301))


async def test_intake_that_is_itself_interrupted_stores_nothing_twice(paths: Paths) -> None:
    paths.spill.mkdir(parents=True)
    outbox = await Outbox.open(paths.outbox, node="shed", clock=SystemClock())
    feed = outbox.feed("test", frozenset({"telemetry"}))
    left = [
        Submission(service="meter_py", payload=str(number).encode(), producer="p1", producer_sequence=number)
        for number in range(1, 11)
    ]
    (paths.spill / "meter_py-p1.msgpack").write_bytes(msgspec.msgpack.encode(left))
    # The agent died between its commit and the deletion of the file.
    await outbox.submit_many(left)

    await take_in_spills(paths, outbox.submit_many)
    await outbox.submit(Submission(service="meter_py", payload=b"last"))

    messages = await feed.take(100)
    assert [message.payload for message in messages] == [*(one.payload for one in left), b"last"]
    await outbox.close()


async def test_process_that_cannot_save_ends_at_once_all_the_same(tmp_path: Path, paths: Paths) -> None:
    # A file where the folder should be: as a full disk, for whoever writes into it.
    service = await run_agent_and_kill_it(tmp_path, block="", before_the_kill=paths.spill.touch)
    assert await end_of(service) < 3
