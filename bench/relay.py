"""The limit for messages between two services: sender → relay → receiver, three bare processes on Unix sockets.

The frames are the product's own (a length, then a msgpack record of about 200 bytes). Nothing is routed, counted,
bounded or promised: the relay cuts the stream into frames and writes each on ("one by one"), or writes on all that came
at once as one piece ("in batches"). Run as `python -m bench.relay ROLE …` by `relay` below.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from agent.runtime.frames import Action
from bench.harness import percentile
from bench.processes import measure_activity

PADDING = "x" * 165
"""Makes a frame of about 200 bytes."""
_BATCH_BYTES = 64 * 1024
_length = struct.Struct(">I")


@dataclass(frozen=True)
class Transfer:
    """What a receiver saw of one run.

    Attributes:
        per_second: messages, from the first one's sending to the last one's arrival.
        latencies: seconds from sending to arrival: (50th, 99th percentile).
        cpu_seconds: of all processes on the way, for each message.
    """

    per_second: float
    latencies: tuple[float, float]
    cpu_seconds: float


class Arrivals:
    """Notes when each message was sent and when it arrived."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._first = 0.0
        self._latencies: list[float] = []

    def take(self, sent: float) -> bool:
        """Note one; True for the last."""
        now = time.perf_counter()
        if not self._latencies:
            self._first = sent
        self._latencies.append(now - sent)
        self._left -= 1
        if self._left:
            return False
        self._elapsed = now - self._first
        return True

    def document(self) -> list[float]:
        """Messages a second, 50th and 99th percentile of the latency in seconds."""
        return [
            len(self._latencies) / self._elapsed,
            percentile(self._latencies, 50),
            percentile(self._latencies, 99),
        ]


async def relay(count: int, *, rate: float = 0.0, batches: bool = False) -> Transfer:
    """Measure `count` messages, `rate` a second or (0) as fast as they go."""
    inward, outward = socket.socketpair(), socket.socketpair()
    style = "batches" if batches else "singly"
    roles = [
        await _spawn([outward[1]], "receive", str(count)),
        await _spawn([inward[1], outward[0]], "relay", str(outward[0].fileno()), style),
        await _spawn([inward[0]], "send", str(count), str(rate), style),
    ]
    for sock in (*inward, *outward):
        sock.close()
    receiver, _, sender = roles
    pids = [process.pid for process in roles]
    try:
        async with asyncio.timeout(300):
            for process in roles:
                assert process.stdout is not None
                await process.stdout.readline()
            before = measure_activity(pids)
            assert sender.stdin is not None
            sender.stdin.write(b"go\n")
            assert receiver.stdout is not None
            per_second, p50, p99 = json.loads(await receiver.stdout.readline())
            cpu_seconds = (measure_activity(pids) - before).cpu_seconds
    finally:
        for process in roles:
            assert process.stdin is not None
            process.stdin.close()
        await asyncio.gather(*(process.wait() for process in roles))
    return Transfer(per_second, (p50, p99), cpu_seconds / count)


async def _spawn(sockets: list[socket.socket], role: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.relay", role, str(sockets[0].fileno()), *arguments),
        pass_fds=[sock.fileno() for sock in sockets],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


# --- The three processes ----------------------------------------------------------------------------------------------


class _Sender(asyncio.Protocol):
    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()


class _Cutter(asyncio.Protocol):
    """Cuts the stream into frames; `frames` gets a chunk and where the complete frames in it begin and end."""

    def __init__(self, frames: Callable[[bytes, list[tuple[int, int]]], None]) -> None:
        self._frames = frames
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        unpack = _length.unpack_from
        places = []
        start, end = 0, len(data)
        while end - start >= 4:
            stop = start + 4 + unpack(data, start)[0]
            if stop > end:
                break
            places.append((start, stop))
            start = stop
        self._rest = data[start:]
        if places:
            self._frames(data, places)


async def _send(sock: socket.socket, count: int, rate: float, style: str) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_unix_connection(_Sender, sock=sock)
    encode = msgspec.msgpack.Encoder().encode
    gathered = bytearray()
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    began = time.perf_counter()
    for number in range(count):
        if rate and (wait := began + number / rate - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        payload = msgspec.Raw(encode({"at": time.perf_counter(), "text": PADDING}))
        body = encode(Action("", "receiver", "take", 0, payload))
        frame = _length.pack(len(body)) + body
        if style == "batches" and not rate:
            gathered += frame
            if len(gathered) >= _BATCH_BYTES or number == count - 1:
                transport.write(gathered)
                gathered = bytearray()
        else:
            transport.write(frame)
        if not protocol.room.is_set():
            await protocol.room.wait()
    await loop.run_in_executor(None, sys.stdin.read)


async def _relay(inward: socket.socket, outward: socket.socket, style: str) -> None:
    loop = asyncio.get_running_loop()
    source: asyncio.Transport

    class Onward(asyncio.Protocol):
        def pause_writing(self) -> None:
            source.pause_reading()

        def resume_writing(self) -> None:
            source.resume_reading()

    onward, _ = await loop.create_unix_connection(Onward, sock=outward)

    def singly(data: bytes, places: list[tuple[int, int]]) -> None:
        for start, stop in places:
            onward.write(data[start:stop])

    def batches(data: bytes, places: list[tuple[int, int]]) -> None:
        onward.write(data[: places[-1][1]])

    source, _ = await loop.create_unix_connection(
        lambda: _Cutter(batches if style == "batches" else singly), sock=inward
    )
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


async def _receive(sock: socket.socket, count: int) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    arrivals = Arrivals(count)
    decode = msgspec.msgpack.Decoder(Action).decode
    decode_payload = msgspec.msgpack.Decoder().decode

    def frames(data: bytes, places: list[tuple[int, int]]) -> None:
        for start, stop in places:
            frame = decode(data[start + 4 : stop])
            if arrivals.take(decode_payload(frame.payload)["at"]):
                done.set()

    await loop.create_unix_connection(lambda: _Cutter(frames), sock=sock)
    print("ready", flush=True)
    await done.wait()
    print(json.dumps(arrivals.document()), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main(role: str, descriptor: str, *arguments: str) -> None:
    """Be one of the three."""
    sock = socket.socket(fileno=int(descriptor))
    sock.setblocking(False)
    if role == "send":
        count, rate, style = arguments
        asyncio.run(_send(sock, int(count), float(rate), style))
    elif role == "relay":
        other, style = arguments
        outward = socket.socket(fileno=int(other))
        outward.setblocking(False)
        asyncio.run(_relay(sock, outward, style))
    else:
        asyncio.run(_receive(sock, int(arguments[0])))


if __name__ == "__main__":
    main(*sys.argv[1:])
