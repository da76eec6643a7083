"""When messages reach a broker: a subscriber that notes the time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from types import TracebackType
from typing import Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion


class Arrivals:
    """Subscribe to everything on a broker: `async with Arrivals(port) as arrivals:`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._times: list[tuple[float, float]] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = self._on_message
        await asyncio.to_thread(self._client.connect, "127.0.0.1", self._port)
        self._client.loop_start()
        self._client.subscribe("#", qos=1)
        await asyncio.to_thread(subscribed.wait, 10)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    async def wait(self, count: int, *, seconds: float = 60.0) -> list[tuple[float, float]]:
        """Wait for `count` messages since the last call: for each its own `at`, and when it arrived, both monotonic."""
        async with asyncio.timeout(seconds):
            while len(self._times) < count:
                self._news.clear()
                await self._news.wait()
        found, self._times = self._times[:count], self._times[count:]
        return found

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        now = time.perf_counter()
        sent = 0.0
        with contextlib.suppress(ValueError, KeyError, TypeError):
            sent = json.loads(message.payload)["at"]
        self._times.append((sent, now))
        self._loop.call_soon_threadsafe(self._news.set)
