"""Frames between the agent and a service's process."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runtime import frames
from agent.runtime.frames import Accepted, Action, FrameError, FrameLink, decode_payload, encode_frame, encode_payload

pytestmark = pytest.mark.usefixtures("no_blocking_calls")

DECODER = msgspec.msgpack.Decoder(frames.Frame)


class End:
    """One end of a connection, and what came out of it."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.errors: list[FrameError | None] = []
        self.link: FrameLink
        self.changed = asyncio.Event()

    async def connect(self, sock: socket.socket) -> End:
        loop = asyncio.get_running_loop()
        _, self.link = await loop.create_unix_connection(
            lambda: FrameLink(DECODER, self._received, self._closed), sock=sock
        )
        return self

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(10):
            while len(self.frames) < count:
                self.changed.clear()
                await self.changed.wait()
        return self.frames

    def _received(self, frame: Any) -> None:
        if isinstance(frame, Action):
            # What a payload is a view of is used again.
            frame = (frame.destination, decode_payload(frame.payload))
        self.frames.append(frame)
        self.changed.set()

    def _closed(self, error: FrameError | None) -> None:
        self.errors.append(error)


async def pair() -> tuple[End, End]:
    first, second = socket.socketpair()
    first.setblocking(False)
    second.setblocking(False)
    return await End().connect(first), await End().connect(second)


async def close(*ends: End) -> None:
    for end in ends:
        end.link.abort()
        await end.link.gone.wait()


def action(payload: Any) -> Action:
    return Action("", "receiver_py", "take", 0, encode_payload(payload))


async def test_frames_of_all_sizes_arrive_whole_and_in_order():
    ours, theirs = await pair()
    sizes = [0, 1, 200, 65_000, 65_536, 70_000, 3, 1_000_000, 5, 131_072, 1_048_000, 7] * 3
    for size in sizes:
        ours.link.write(action("x" * size))
    received = await theirs.until(len(sizes))
    assert [len(payload) for _, payload in received] == sizes
    await close(ours, theirs)


async def test_frames_of_one_turn_leave_in_one_write():
    ours, theirs = await pair()
    writes = []
    transport = ours.link._transport
    assert transport is not None
    write = transport.write
    transport.write = lambda data: (writes.append(len(data)), write(data))  # type: ignore[method-assign,assignment,func-returns-value]
    for number in range(100):
        ours.link.write(Accepted("x", number))
    assert not writes
    assert len(await theirs.until(100)) == 100
    assert len(writes) == 1
    await close(ours, theirs)


@given(cuts=st.lists(st.integers(min_value=1, max_value=400), max_size=30))
def test_frames_cut_anywhere_are_put_together(cuts):
    stream = b"".join(encode_frame(Accepted("x" * number, number)) for number in range(20))
    received = []

    async def feed() -> None:
        link = FrameLink(DECODER, received.append, lambda _: None)
        start = 0
        for cut in [*cuts, len(stream)]:
            piece = stream[start : start + cut]
            start += len(piece)
            while piece:
                buffer = link.get_buffer(-1)
                size = min(len(buffer), len(piece))
                buffer[:size] = piece[:size]
                link.buffer_updated(size)
                piece = piece[size:]

    asyncio.run(feed())
    assert [frame.cost for frame in received] == list(range(20))


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (b"\xff\xff\xff\xff", "longer than"),
        ((5).to_bytes(4, "big") + b"\xc1\xc1\xc1\xc1\xc1", "cannot be read"),
        ((2).to_bytes(4, "big") + msgspec.msgpack.encode([99]), "cannot be read"),
    ],
    ids=["too long", "not msgpack", "unknown record"],
)
async def test_peer_that_breaks_the_protocol_loses_its_connection(stream, text):
    first, second = socket.socketpair()
    first.setblocking(False)
    second.setblocking(False)
    end = await End().connect(first)
    await asyncio.get_running_loop().sock_sendall(second, stream)
    async with asyncio.timeout(5):
        await end.link.gone.wait()
    assert text in str(end.errors[0])
    second.close()


async def test_peer_that_leaves_is_no_error_and_later_writes_do_nothing():
    ours, theirs = await pair()
    theirs.link.close()
    async with asyncio.timeout(5):
        await ours.link.gone.wait()
    assert ours.errors == [None]
    ours.link.write(Accepted("x", 1))
    ours.link.flush()
    assert not ours.link.open


async def test_writer_is_told_when_the_reader_falls_behind_and_when_it_has_caught_up():
    ours, theirs = await pair()
    theirs.link._transport.pause_reading()  # type: ignore[union-attr]
    count = 0
    async with asyncio.timeout(10):
        while not ours.link.congested:
            ours.link.write(action("x" * 100_000))
            count += 1
            await asyncio.sleep(0)
    relieved = asyncio.Event()
    ours.link.when_relieved(relieved.set)
    theirs.link._transport.resume_reading()  # type: ignore[union-attr]
    async with asyncio.timeout(10):
        await relieved.wait()
    await theirs.until(count)
    await close(ours, theirs)


@pytest.mark.parametrize("payload", [{1: {2: [3.5, b"x", "y", None, True]}}, [], "", 2**63])
def test_payload_comes_back_as_it_was(payload):
    assert decode_payload(encode_payload(payload)) == payload


@pytest.mark.parametrize("payload", [object(), {"x": print}, 2**70, "\ud800"])
def test_payload_that_cannot_travel_is_a_type_error_that_names_it(payload):
    with pytest.raises(TypeError, match=f"A {type(payload).__name__} cannot be sent"):
        encode_payload(payload)


def test_payload_that_contains_itself_is_refused():
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="A list cannot be sent"):
        encode_payload(endless)
