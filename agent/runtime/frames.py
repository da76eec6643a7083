"""What the agent and a service's process say to each other.

A frame is a length (4 bytes, big endian) and a msgpack array whose first element says which record it is. Frames
gather while the loop turns and go out in one write. A payload that one service sends to another stays as the sender
encoded it (`msgspec.Raw`): the agent reads only the envelope.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec

FRAME_LIMIT_BYTES = 2 * 1024 * 1024
"""A longer frame closes the connection."""
PAYLOAD_LIMIT_BYTES = 1024 * 1024
"""What one service may send to another in one message."""
WINDOW = 1000
"""What one sender may have under way to one destination before the router has put it into the destination's mailbox;
a message costs 1, and 1 more for each KiB."""
BROADCAST = -1
"""The delivery number of what goes to everybody who has the method."""
SUBMISSION_WINDOW = 1000
"""Submissions of one process that are on their way to the outbox."""

_READ_BYTES = 64 * 1024
_DIRECT_WRITES = 8
_DIRECT_WINDOW_SECONDS = 0.001
_FLUSH_BYTES = 64 * 1024

Level = Literal["debug", "info", "warning", "error", "status"]
ErrorCode = Literal["unknown", "failed"]


class Hello(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """Process → agent: it has the service's lock, so no earlier process of the service is left; it awaits `Proceed`."""

    producer: str


class Ready(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """Process → agent: the object of this id exists; `Start` begins and messages may come."""

    service: str


class Progress(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """Process → agent: what it is doing."""

    state: Literal["starting", "installing", "running"]


class Crashed(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """Process → agent: why it ends now."""

    phase: Literal["load", "packages", "construction", "start"]
    text: str
    traceback: str
    permanent: bool = False
    """The same script with the same configuration can only fail again."""


class Fault(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """Process → agent: an exception nobody caught; the process goes on."""

    text: str
    traceback: str


class Log(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """Process → agent: a line."""

    source: str
    level: Level
    text: str


class Action(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """Process → agent: a message to another service; with a `request` number an answer is wanted."""

    source: str
    destination: str
    action: str
    request: int
    payload: msgspec.Raw


class Publish(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """Process → agent: an event."""

    source: str
    topic: str
    payload: msgspec.Raw


class Subscribe(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """Process → agent: events whose topics match are wanted."""

    topic_filter: str


class Reply(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """Process → agent: what a method returned (`error` empty), or why it did not."""

    delivery: int
    error: str
    payload: msgspec.Raw


class Submit(msgspec.Struct, array_like=True, tag=11, frozen=True):
    """Process → agent: a message for the outbox."""

    sequence: int
    source: str
    kind: Literal["telemetry", "fault", "tracking"]
    lane: Literal["live", "bulk"]
    payload: bytes
    content_type: str
    content_encoding: str
    properties: dict[str, str]
    ttl_seconds: float | None


class Finished(msgspec.Struct, array_like=True, tag=12, frozen=True, gc=False):
    """Process → agent: this many deliveries are done with."""

    count: int


class Stopped(msgspec.Struct, array_like=True, tag=13, frozen=True, gc=False):
    """Process → agent: `Stop` is through and everything is handed over; the process ends now, as it was asked."""


class Begin(msgspec.Struct, array_like=True, tag=20, frozen=True):
    """Agent → process: what to be. The first frame."""

    service: str
    class_name: str
    file_name: str
    version: str
    script: str
    sha256: str
    config: dict[str, Any]
    environment: dict[str, str]
    settings: msgspec.Raw
    folder: str
    """The working directory."""
    packages: str
    spill: str


class Proceed(msgspec.Struct, array_like=True, tag=29, frozen=True, gc=False):
    """Agent → process: what an earlier process left has been taken in; load the script."""


class Deliver(msgspec.Struct, array_like=True, tag=21, frozen=True, gc=False):
    """Agent → process: a message for a service in it; with a `delivery` number above 0 a `Reply` is wanted."""

    source: str
    destination: str
    action: str
    delivery: int
    payload: msgspec.Raw


class Event(msgspec.Struct, array_like=True, tag=22, frozen=True, gc=False):
    """Agent → process: something published whose topic matches a subscription here."""

    source: str
    topic: str
    payload: msgspec.Raw


class Accepted(msgspec.Struct, array_like=True, tag=23, frozen=True, gc=False):
    """Agent → process: messages to `destination` that cost so much of its window have found their place."""

    destination: str
    cost: int


class Answer(msgspec.Struct, array_like=True, tag=24, frozen=True, gc=False):
    """Agent → process: the answer to its request; `error` says what kind of failure, with a text as payload."""

    request: int
    error: Literal["", "unknown", "failed"]
    payload: msgspec.Raw


class Committed(msgspec.Struct, array_like=True, tag=25, frozen=True, gc=False):
    """Agent → process: every submission up to this number is in the outbox."""

    sequence: int


class Refused(msgspec.Struct, array_like=True, tag=26, frozen=True, gc=False):
    """Agent → process: the outbox did not take this submission, and those before it are dealt with."""

    sequence: int
    text: str


class Settings(msgspec.Struct, array_like=True, tag=27, frozen=True, gc=False):
    """Agent → process: the node signed in again."""

    settings: msgspec.Raw


class Stop(msgspec.Struct, array_like=True, tag=28, frozen=True, gc=False):
    """Agent → process: end within so many seconds."""

    timeout_seconds: float


FromProcess = (
    Hello
    | Ready
    | Progress
    | Crashed
    | Fault
    | Log
    | Action
    | Publish
    | Subscribe
    | Reply
    | Submit
    | Finished
    | Stopped
)
FromAgent = Begin | Proceed | Deliver | Event | Accepted | Answer | Committed | Refused | Settings | Stop
Frame = FromProcess | FromAgent

_encoder = msgspec.msgpack.Encoder()
_length = struct.Struct(">I")
NOTHING = msgspec.Raw(_encoder.encode(None))


class FrameError(ValueError):
    """The peer does not speak this protocol; the connection cannot go on."""


def encode_payload(message: Any) -> msgspec.Raw:
    """A service's payload as it travels.

    Raises TypeError, naming the type, for what msgpack cannot hold; ValueError for what is too large.
    """
    try:
        encoded = _encoder.encode(message)
    except (TypeError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise TypeError(
            f"A {type(message).__name__} cannot be sent to another service: {error}. "
            "Send None, numbers, text, bytes, dates, lists or dicts of them."
        ) from error
    if len(encoded) > PAYLOAD_LIMIT_BYTES:
        raise ValueError(
            f"A message of {len(encoded)} bytes is too large for another service; {PAYLOAD_LIMIT_BYTES} is the most. "
            "Send it in parts."
        )
    return msgspec.Raw(encoded)


def window_cost(payload: msgspec.Raw) -> int:
    """What a message costs of its sender's window."""
    return 1 + (len(payload) >> 10)


_payload_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(strict=False)


def decode_payload(payload: msgspec.Raw) -> Any:
    """What `encode_payload` was given. Tuples come back as lists. Raises ValueError for damaged bytes."""
    return _payload_decoder.decode(payload)


def encode_frame(frame: Frame) -> bytes:
    """One frame as it goes on the wire."""
    body = _encoder.encode(frame)
    return _length.pack(len(body)) + body


class FrameLink(asyncio.BufferedProtocol):
    """One end of a connection: reads frames, gathers writes. On the loop only.

    Args:
        decoder: for the frames that the peer sends.
        received: called with each frame.
        closed: called once, with what the peer got wrong, or None when it just went.
        eager: write the first frames of a burst at once instead of at the end of the loop's turn. The service's end
            does, because its code may block the loop right after.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[Any],
        received: Callable[[Any], None],
        closed: Callable[[FrameError | None], None],
        *,
        eager: bool = False,
    ) -> None:
        self._decode = decoder.decode
        self._received = received
        self._closed = closed
        self._eager = eager
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._error: FrameError | None = None
        # Reading.
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        # Writing.
        self._out = bytearray()
        self._flush_due = False
        self._burst_start = 0.0
        self._burst = 0
        self.congested = False
        """The peer does not read as fast as this end writes."""
        self._relieved: list[Callable[[], None]] = []
        self.closing = False
        """This end has asked for the end."""
        self.gone = asyncio.Event()
        """The connection has ended."""

    # --- Reading --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=1024 * 1024)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport puts what it reads."""
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take the frames out of what has been read."""
        self._end += nbytes
        view, start, end = self._view, self._start, self._end
        unpack, decode, received = _length.unpack_from, self._decode, self._received
        wanted = 4
        try:
            while end - start >= 4:
                (length,) = unpack(view, start)
                wanted = length + 4
                if wanted > end - start:
                    break
                frame = decode(view[start + 4 : start + wanted])
                start += wanted
                wanted = 4
                received(frame)
        except msgspec.MsgspecError as error:
            self._fail(FrameError(f"a frame cannot be read: {error}"))
            return
        except FrameError as error:
            self._fail(error)
            return
        if wanted > FRAME_LIMIT_BYTES:
            self._fail(FrameError(f"a frame of {wanted} bytes is longer than {FRAME_LIMIT_BYTES}"))
            return
        self._make_room(start, end, wanted)

    def _make_room(self, start: int, end: int, wanted: int) -> None:
        left = end - start
        size = len(self._buffer)
        if wanted > size or (size > _READ_BYTES and wanted <= _READ_BYTES and left <= _READ_BYTES):
            # A frame larger than the buffer, or the buffer is larger than it need be any more.
            buffer = bytearray(max(_READ_BYTES, wanted))
            buffer[:left] = self._view[start:end]
            self._buffer, self._view = buffer, memoryview(buffer)
            start, end = 0, left
        elif start == end:
            start = end = 0
        elif size - start < wanted or size - end < size // 4:
            self._buffer[:left] = self._buffer[start:end]
            start, end = 0, left
        self._start, self._end = start, end

    def pause_reading(self) -> None:
        """Leave what the peer sends in the socket; the peer's writes stall."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """The peer has gone; nothing is left to say to it."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner, once."""
        self._transport = None
        self._out = bytearray()
        self.gone.set()
        self._closed(self._error)

    def _fail(self, error: FrameError) -> None:
        self._error = error
        self.abort()

    # --- Writing --------------------------------------------------------------------------------------------------

    def write(self, frame: Frame) -> None:
        """Send a frame; it leaves with the others of this turn of the loop. Nothing happens after the end."""
        out = self._out
        start = len(out)
        out += b"\0\0\0\0"
        _encoder.encode_into(frame, out, -1)
        _length.pack_into(out, start, len(out) - start - 4)
        if self._flush_due:
            if len(out) > _FLUSH_BYTES:
                self.flush()
            return
        if self._eager:
            now = time.monotonic()
            if now - self._burst_start > _DIRECT_WINDOW_SECONDS:
                self._burst_start = now
                self._burst = 0
            self._burst += 1
            if self._burst <= _DIRECT_WRITES:
                self.flush()
                return
        self._flush_due = True
        self._loop.call_soon(self._flush_turn)

    def write_encoded(self, frame: bytes) -> None:
        """Send a frame that `encode_frame` made."""
        self._out += frame
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_turn)

    def flush(self) -> None:
        """Hand everything to the kernel, or to the transport if the kernel is full."""
        out = self._out
        if out:
            self._out = bytearray()
            if self._transport is not None:
                self._transport.write(out)

    def _flush_turn(self) -> None:
        self._flush_due = False
        self.flush()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self.congested = True

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        self.congested = False
        relieved, self._relieved = self._relieved, []
        for callback in relieved:
            callback()

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Call back, once, when the congestion is over."""
        self._relieved.append(callback)

    # --- The end --------------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether frames still reach the peer."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Send what is left, then end."""
        self.flush()
        self.closing = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End now."""
        if self._transport is not None:
            self._transport.abort()
