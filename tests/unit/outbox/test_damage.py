"""A damaged file: set aside, told, and a new one started."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agent.outbox.message import Submission

ALL = frozenset({"telemetry", "fault", "tracking"})


def message(size: int = 500) -> Submission:
    return Submission(service="readgpio_py", payload=b"x" * size)


async def fill(open_outbox: Any, count: int = 2000) -> str:
    outbox = await open_outbox()
    await outbox.submit_many([message() for _ in range(count)])
    await outbox.close()
    stream: str = outbox.stream
    return stream


def truncate(content: bytearray) -> bytes:
    return bytes(content[: len(content) * 2 // 3])


def garble_the_start(content: bytearray) -> bytes:
    return b"not a database" + bytes(content[14:])


def flip_in_every_page(content: bytearray) -> bytes:
    chosen = random.Random(7)
    for page in range(4096, len(content), 4096):
        content[page + chosen.randrange(16)] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize("damage", [truncate, garble_the_start, flip_in_every_page])
async def test_damaged_file_is_set_aside_and_a_new_stream_begins(open_outbox, path: Path, damage: Any) -> None:
    stream = await fill(open_outbox)
    damaged = damage(bytearray(path.read_bytes()))
    path.write_bytes(damaged)
    outbox = await open_outbox()
    assert outbox.recovered_from == path.with_name("outbox.db.damaged-1")
    assert outbox.recovered_from.read_bytes() == damaged
    assert outbox.stats().recovered_from == str(outbox.recovered_from)
    assert outbox.stream != stream
    assert await outbox.submit(message()) == 1


async def test_second_damaged_file_gets_another_name(open_outbox, path: Path) -> None:
    for number in (1, 2):
        await fill(open_outbox, 10)
        path.write_bytes(b"garbage" * 1000)
        outbox = await open_outbox()
        assert outbox.recovered_from == path.with_name(f"outbox.db.damaged-{number}")
        await outbox.close()


async def test_sound_file_is_not_set_aside(open_outbox, path: Path) -> None:
    stream = await fill(open_outbox)
    outbox = await open_outbox()
    assert (outbox.recovered_from, outbox.stream, outbox.stats().depth) == (None, stream, 2000)
    assert not list(path.parent.glob("*.damaged-*"))


async def test_file_that_breaks_while_in_use_is_replaced_and_nothing_handed_in_is_refused(
    open_outbox, path: Path
) -> None:
    await fill(open_outbox, 5000)
    outbox = await open_outbox()
    feed = outbox.feed("cloud", ALL)
    stream = outbox.stream
    (first,) = await feed.take(1)
    await outbox.flush()
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    taken: list[Any] = []

    async def take_everything() -> None:
        while True:
            taken.extend(await feed.take(1000))

    taking = asyncio.create_task(take_everything())
    async with asyncio.timeout(20):
        while outbox.stream == stream:
            await outbox.submit(message())
        assert outbox.recovered_from == path.with_name("outbox.db.damaged-1")
        await feed.acknowledge([first.id])
        sequence = await outbox.submit(message())
        while not taken or (taken[-1].stream, taken[-1].sequence) != (outbox.stream, sequence):
            await outbox.flush()
    taking.cancel()
    # What a sink still held of the old file was no message of the new one.
    assert outbox.stats().depth == sequence
    await feed.acknowledge([got.id for got in taken])
    await outbox.flush()
    assert outbox.stats().depth == 0


async def test_opening_many_rows_is_quick_enough_to_be_checked_within_a_budget(open_outbox, path: Path) -> None:
    await fill(open_outbox, 20_000)
    connection = sqlite3.connect(path)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.close()
    assert pages > 2000
    outbox = await open_outbox()
    assert outbox.stats().depth == 20_000
