"""The least that an agent could be: one process, asyncio, a WebSocket client and an MQTT client; no services, no disk.

It sends one message to a broker as soon as it can and then waits: what start, memory and rest cost before any feature.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

START_SECONDS = 30.0
TOPIC = "bench/bare"


@asynccontextmanager
async def running(port: int) -> AsyncIterator[int]:
    """Run one until the end of the block; gives its process id once its message is with the broker."""
    process = await start(port)
    assert process.stdout is not None
    async with asyncio.timeout(START_SECONDS):
        await process.stdout.readline()
    try:
        yield process.pid
    finally:
        await stop(process)


async def start(port: int) -> asyncio.subprocess.Process:
    """Start one; it writes a line when the broker has its message."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.bare_agent", str(port), stdout=asyncio.subprocess.PIPE
    )


async def stop(process: asyncio.subprocess.Process) -> None:
    """End it."""
    process.terminate()
    await process.wait()


async def _run(port: int) -> None:
    import aiohttp
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    # What a node holds for its portal; there is none here.
    async with aiohttp.ClientSession():
        message = client.publish(TOPIC, b'{"started": true}', qos=1)
        await asyncio.to_thread(message.wait_for_publish)
        print("sent", flush=True)
        await ended.wait()
    client.loop_stop()


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1])))
