"""Messages from one service to another through the agent, against a bare relay of the same frames.

    python bench/service_to_service.py [--count 100000] [--rounds 5]

Each round measures both, one after the other. The bare relay is three processes (sender, relay, receiver) on two Unix
sockets that pass on length-prefixed msgpack frames of the same size, one write a frame, and decode each at the end:
what any broker between two processes costs at least. `ratio` is ours to that; the summary is the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.clock import SystemClock
from agent.hub.protocol import ServiceConfig
from agent.orchestrator.orchestrator import LogRecord, Orchestrator, ServiceSpec
from agent.outbox.message import Submission
from agent.paths import Paths
from agent.runtime.frames import Deliver, FrameLink, encode_payload

PAYLOAD = {"text": "x" * 180}
"""About 200 bytes on the wire."""

SENDER = """
import time
from base_service import CustomService

class Sender(CustomService):
    async def flood(self, args):
        count = args.message[0]
        payload = {"text": "x" * 180}
        for _ in range(count):
            await self.SubmitAction("receiver_py", "take", payload)

    async def ping(self, args):
        times = []
        payload = {"text": "x" * 180}
        for _ in range(args.message[0]):
            start = time.perf_counter()
            await self.Request("receiver_py", "echo", payload)
            times.append((time.perf_counter() - start) / 2)
        return times
"""
RECEIVER = """
import asyncio
import time
from base_service import CustomService

class Receiver(CustomService):
    async def expect(self, args):
        self.left = args.message[0]
        self.done = asyncio.Event()

    async def take(self, args):
        self.left -= 1
        if self.left == 0:
            self.at = time.perf_counter()
            self.done.set()

    async def finished(self, args):
        await self.done.wait()
        return self.at

    async def echo(self, args):
        return None
"""


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="messages a round (default 100000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    arguments = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            bare = measure_relay(arguments.count)
            ours, latencies = asyncio.run(measure_node(Path(folder) / str(number), arguments.count))
            rounds.append((bare, ours, ours / bare))
            print(
                f"round {number + 1}: bare {bare:,.0f}/s, ours {ours:,.0f}/s, ratio {ours / bare:.2f}", file=sys.stderr
            )
    latencies.sort()
    print(
        json.dumps(
            {
                "bare_per_second": round(statistics.median(bare for bare, _, _ in rounds)),
                "ours_per_second": round(statistics.median(ours for _, ours, _ in rounds)),
                "ratio": round(statistics.median(ratio for _, _, ratio in rounds), 2),
                "one_way_p50_microseconds": round(latencies[len(latencies) // 2] * 1e6),
                "one_way_p99_microseconds": round(latencies[len(latencies) * 99 // 100] * 1e6),
            }
        )
    )


# --- The bare relay ---


def measure_relay(count: int) -> float:
    """Messages a second from sender over relay to receiver."""
    context = multiprocessing.get_context("fork")
    first, second = socket.socketpair(), socket.socketpair()
    ends = context.SimpleQueue()
    processes = [
        context.Process(target=_receive, args=(second[1], count, ends)),
        context.Process(target=_relay, args=(first[1], second[0])),
    ]
    for process in processes:
        process.start()
    start = time.perf_counter()
    sender = context.Process(target=_send, args=(first[0], count))
    sender.start()
    end = ends.get()
    sender.join()
    for process in processes:
        process.terminate()
        process.join()
    for sock in (*first, *second):
        sock.close()
    return count / (end - start)


def _send(sock: socket.socket, count: int) -> None:
    async def run() -> None:
        transport, protocol = await asyncio.get_running_loop().create_unix_connection(_Paced, sock=sock)
        encode = msgspec.msgpack.Encoder().encode
        for _ in range(count):
            body = encode(Deliver("sender_py", "receiver_py", "take", 0, encode_payload(PAYLOAD)))
            transport.write(len(body).to_bytes(4, "big") + body)
            if protocol.paused:
                await protocol.resumed.wait()
        transport.close()
        await protocol.closed.wait()

    asyncio.run(run())


class _Paced(asyncio.Protocol):
    def __init__(self) -> None:
        self.paused = False
        self.resumed = asyncio.Event()
        self.closed = asyncio.Event()

    def pause_writing(self) -> None:
        self.paused = True
        self.resumed.clear()

    def resume_writing(self) -> None:
        self.paused = False
        self.resumed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


class _Forward(asyncio.Protocol):
    """Cuts the stream into frames and writes each on."""

    def __init__(self, onward: asyncio.Transport) -> None:
        self._onward = onward
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        start, end = 0, len(data)
        while end - start >= 4:
            length = int.from_bytes(data[start : start + 4], "big") + 4
            if end - start < length:
                break
            self._onward.write(data[start : start + length])
            start += length
        self._rest = data[start:]


def _relay(inward: socket.socket, outward: socket.socket) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        onward, _ = await loop.create_unix_connection(asyncio.Protocol, sock=outward)
        await loop.create_unix_connection(lambda: _Forward(onward), sock=inward)
        await asyncio.Event().wait()

    asyncio.run(run())


def _receive(sock: socket.socket, count: int, ends: multiprocessing.SimpleQueue[float]) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        left = count

        def received(frame: Deliver) -> None:
            nonlocal left
            msgspec.msgpack.decode(frame.payload)
            left -= 1
            if left == 0:
                ends.put(time.perf_counter())
                done.set()

        decoder = msgspec.msgpack.Decoder(Deliver)
        await loop.create_unix_connection(lambda: FrameLink(decoder, received, lambda _: None), sock=sock)
        await done.wait()

    asyncio.run(run())


# --- Through the agent ---


async def measure_node(folder: Path, count: int) -> tuple[float, list[float]]:
    """Messages a second between two services, and one-way times of single messages in seconds (half a `Request`)."""
    paths = Paths(state=folder / "state", runtime=folder / "run")
    lines: list[LogRecord] = []
    ready = asyncio.Event()
    running: set[str] = set()

    def on_state(status: object) -> None:
        running.add(status.id) if status.state == "running" else None
        if len(running) == 2:
            ready.set()

    def submit(submissions: Sequence[Submission], callback: object) -> None:
        callback([1] * len(submissions), None)

    orchestrator = Orchestrator(
        paths=paths,
        clock=SystemClock(),
        submit_many=submit,
        built_ins=[],
        log=lines.append,
        settings=dict,
        on_state=on_state,
    )
    task = asyncio.create_task(orchestrator.run())
    await orchestrator.apply([_spec(paths, "Sender", SENDER), _spec(paths, "Receiver", RECEIVER)])
    await asyncio.wait_for(ready.wait(), 30)
    await orchestrator.request("bench", "receiver", "expect", count)
    start = time.perf_counter()
    flood = asyncio.create_task(orchestrator.request("bench", "sender", "flood", count, 300))
    end = await orchestrator.request("bench", "receiver", "finished", None, 300)
    await flood
    latencies = await orchestrator.request("bench", "sender", "ping", 2000, 300)
    await orchestrator.stop(5)
    await task
    assert not any(line.level == "error" for line in lines), lines
    return count / (end - start), latencies


def _spec(paths: Paths, name: str, source: str) -> ServiceSpec:
    script = paths.scripts / f"{name}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(textwrap.dedent(source))
    return ServiceSpec(
        id=f"{name.lower()}_py",
        class_name=name,
        file_name=script.name,
        version="0.1",
        script=script,
        sha256="",
        config=ServiceConfig(),
    )


if __name__ == "__main__":
    main()
