"""A disk without space: one sentence for who submits, and the store goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.errors import StorageError
from agent.outbox.message import Submission
from agent.outbox.store import Outbox

ALL: Any = frozenset({"telemetry", "fault", "tracking"})


def message(size: int = 2000) -> Submission:
    return Submission(service="readgpio_py", payload=b"x" * size)


async def fill(outbox: Outbox) -> int:
    """Submit until the disk is full; how many were stored."""
    stored = 0
    with pytest.raises(StorageError, match="disk is full"):  # noqa: PT012 - the loop is what must end so
        while stored < 10_000:
            stored = await outbox.submit(message())
    return stored


@pytest.mark.parametrize("durability", ["crash", "power"])
async def test_full_disk_refuses_submissions_and_takes_them_again_when_there_is_room(
    small_disk: Path, durability: Any
) -> None:
    outbox = await Outbox.open(small_disk / "outbox.db", node="n", clock=SystemClock(), durability=durability)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 500_000)
    stored = await fill(outbox)
    assert stored > 50
    assert outbox.stats().depth == stored
    with pytest.raises(StorageError):
        await outbox.submit(message())
    await asyncio.to_thread(ballast.unlink)
    # Refused ones took no sequence.
    assert await outbox.submit(message()) == stored + 1
    await outbox.close()


async def test_sink_can_empty_an_outbox_on_a_full_disk(small_disk: Path) -> None:
    outbox = await Outbox.open(small_disk / "outbox.db", node="n", clock=SystemClock())
    feed = outbox.feed("cloud", ALL)
    stored = await fill(outbox)
    taken: list[Any] = []
    while len(taken) < stored:
        batch = await asyncio.wait_for(feed.take(20), 10)
        taken += batch
        await feed.acknowledge([got.id for got in batch])
    await outbox.flush()
    assert [got.sequence for got in taken] == list(range(1, stored + 1))
    assert outbox.stats().depth == 0
    # The file is full of free pages now: as many messages again, and they can be sent again.
    assert await fill(outbox) > stored // 2 + stored
    while outbox.stats().depth:
        await feed.acknowledge([got.id for got in await asyncio.wait_for(feed.take(20), 10)])
        await outbox.flush()
    assert await outbox.submit(message())
    await outbox.close()


async def test_outbox_opens_on_a_full_disk_with_everything_in_it(small_disk: Path) -> None:
    outbox = await Outbox.open(small_disk / "outbox.db", node="n", clock=SystemClock())
    stored = await fill(outbox)
    await outbox.close()
    os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(b"x" * os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize)
    outbox = await Outbox.open(small_disk / "outbox.db", node="n", clock=SystemClock())
    feed = outbox.feed("cloud", ALL)
    assert len(await asyncio.wait_for(feed.take(stored), 10)) > 0
    assert outbox.stats().depth == stored
    await outbox.close()


LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from agent.clock import SystemClock
from agent.errors import StorageError
from agent.outbox.message import Submission
from agent.outbox.store import Outbox

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
    outbox = await Outbox.open(Path(sys.argv[1]), node="n", clock=SystemClock())
    stored = 0
    try:
        while True:
            stored = await outbox.submit(Submission(service="s_py", payload=b"x" * 2000))
    except StorageError as error:
        print(stored, outbox.stats().depth, error)
    await outbox.close()

asyncio.run(main())
"""


def test_file_that_may_not_grow_gives_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "outbox.db")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    stored, depth, sentence = done.stdout.strip().split(" ", 2)
    assert stored == depth
    assert sentence.startswith("The outbox")
    assert "free" in sentence
