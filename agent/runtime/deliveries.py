"""Messages that have come for a service, on their way into its methods."""

from __future__ import annotations

import asyncio
import time
import traceback
import types
from collections import deque
from collections.abc import Callable
from inspect import isawaitable
from typing import Any

import msgspec

from agent.runtime.client import NodeRuntime
from agent.runtime.frames import (
    NOTHING,
    Deliver,
    ErrorCode,
    Event,
    Finished,
    FrameLink,
    Log,
    Reply,
    decode_payload,
    encode_payload,
)
from agent.runtime.loading import find_action
from services.sdk.base_service import BaseService
from services.sdk.queue_message import QueueMessage

_TURN_SECONDS = 0.005
_WARNED_LIMIT = 1000
_NOT_LAST = -2
"""The delivery number of an event that goes to a further handler of this process."""

Handler = Callable[[QueueMessage], Any]


class Deliveries:
    """Starts each message's handler in order of arrival, and lets none wait for another.

    A handler that finishes without waiting for anything costs no task of its own: one task, the pump, runs handler
    after handler. When a handler waits, the pump stays with it as that handler's task, and a new pump takes the queue
    over. On the loop only.
    """

    def __init__(self, link: FrameLink, runtime: NodeRuntime, services: dict[str, BaseService]) -> None:
        self._link = link
        self._runtime = runtime
        self._services = services
        self._queue: deque[tuple[QueueMessage, Handler | None, int]] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished = 0
        self._finished_due = False
        self._warned: set[tuple[str, str]] = set()

    def deliver(self, frame: Deliver) -> None:
        """A message for a method."""
        message = QueueMessage(frame.source, frame.destination, frame.action, decode_payload(frame.payload))
        self._queue.append((message, None, frame.delivery))
        if self._pump is None:
            self._start_pump()

    def event(self, frame: Event) -> None:
        """Something published."""
        handlers = self._runtime.handlers(frame.topic)
        payload = decode_payload(frame.payload)
        # The agent counts one delivery: the last handler finishes it.
        for position, handler in enumerate(handlers, 1):
            message = QueueMessage(frame.source, self._runtime.service_id, frame.topic, payload)
            self._queue.append((message, handler, 0 if position == len(handlers) else _NOT_LAST))
        if not handlers:
            self._finish()
        elif self._pump is None:
            self._start_pump()

    def _start_pump(self) -> None:
        pump = self._runtime.loop.create_task(self._run())
        self._pump = pump
        self._tasks.add(pump)
        pump.add_done_callback(self._pump_done)

    async def _run(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        loop, queue = self._runtime.loop, self._queue
        loop.call_soon(self._take_over, me)
        turn_ends = time.monotonic() + _TURN_SECONDS
        while queue:
            message, handler, delivery = queue.popleft()
            await self._handle(message, handler, delivery)
            if self._pump is not me or me.cancelling():
                return
            if time.monotonic() > turn_ends and queue:
                # Long enough for this turn of the loop: the service's other tasks have theirs.
                self._pump = None
                loop.call_soon(self._resume)
                return
        self._pump = None

    def _resume(self) -> None:
        if self._pump is None and self._queue:
            self._start_pump()

    def _take_over(self, pump: asyncio.Task[None]) -> None:
        """The pump has had its first turn: if it is still in it, it waits in a handler."""
        if self._pump is pump:
            self._pump = None
            self._resume()

    def _pump_done(self, pump: asyncio.Task[None]) -> None:
        self._tasks.discard(pump)
        if self._pump is pump:
            self._pump = None
            self._resume()
        if not pump.cancelled():
            pump.exception()

    async def _handle(self, message: QueueMessage, handler: Handler | None, delivery: int) -> None:
        error: ErrorCode | None = None
        result: Any = None
        try:
            if handler is None:
                service = self._services.get(message.destination)
                handler = None if service is None else find_action(service, message.action)
            if handler is None:
                error, result = "unknown", self._unknown(message, warn=delivery == 0)
            else:
                result = handler(message)
                if type(result) is types.CoroutineType or isawaitable(result):
                    result = await result
        except asyncio.CancelledError:
            if delivery > 0:
                self._reply(message, delivery, "failed", f"{message.destination}.{message.action} was cancelled")
            raise
        except Exception as failure:  # noqa: BLE001 - the service's boundary
            error, result = "failed", f"{type(failure).__name__}: {failure}"
            self._runtime.report(
                f"{message.destination}.{message.action} raised {type(failure).__name__}: {failure}",
                "".join(traceback.format_exception(failure)),
            )
        finally:
            if delivery != _NOT_LAST:
                self._finish()
        if delivery > 0:
            self._reply(message, delivery, error, result)

    def _reply(self, message: QueueMessage, delivery: int, error: ErrorCode | None, result: Any) -> None:
        payload = NOTHING
        try:
            payload = encode_payload(result)
        except (TypeError, ValueError) as refusal:
            error = "failed"
            payload = msgspec.Raw(
                msgspec.msgpack.encode(
                    f"what {message.destination}.{message.action} returned cannot be sent: {refusal}"
                )
            )
        self._link.write(Reply(delivery, error or "", payload))

    def _unknown(self, message: QueueMessage, *, warn: bool) -> str:
        text = f"{message.destination} has no method {message.action}, which {message.source} called"
        if warn and (message.source, message.action) not in self._warned and len(self._warned) < _WARNED_LIMIT:
            self._warned.add((message.source, message.action))
            self._link.write(Log("", "warning", f"{text}."))
        return text

    def _finish(self) -> None:
        self._finished += 1
        if not self._finished_due:
            self._finished_due = True
            self._runtime.loop.call_soon(self._tell_finished)

    def _tell_finished(self) -> None:
        self._finished_due = False
        count, self._finished = self._finished, 0
        self._link.write(Finished(count))
