"""One node's connection: handshake, records in and out, bounds. It knows nothing of what the records mean."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from agent.errors import HubProtocolError
from agent.hub.protocol import (
    HANDSHAKE_RESPONSE,
    RECORD_SEPARATOR,
    Close,
    Completion,
    Invocation,
    Ping,
    RecordReader,
)
from portal.hub import wire
from portal.hub.limits import HubLimits, RateLimit

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call is answered with: its completion, then calls back, in this order on the wire."""

    result: Any = None
    error: str | None = None
    then: tuple[Invocation, ...] = ()
    close: str | None = None


@dataclass(slots=True)
class PendingCommand:
    """A command whose answer somebody waits for."""

    name: str
    answer: asyncio.Future[dict[str, Any] | None]
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Told:
    """What a node was last told, so that only differences are sent."""

    deployment: str
    tags: tuple[str, ...]
    enabled: bool
    iot_hub: bytes | None
    console: bool
    tracking: bool
    heartbeat: tuple[int, int]
    """Seconds between heartbeats, and how many may be missed."""


Handler = Callable[["NodeConnection", Invocation], Awaitable[Reply]]


class NodeConnection:
    """A WebSocket of a node, or of something that may become one.

    Attributes:
        connection_id: negotiate's.
        nonce: negotiate's; what a node of ours signs.
        address: where it comes from.
        node_id: None until it has signed in.
        told: what it was last told.
        began: whether it has called anything yet.
    """

    def __init__(self, connection_id: str, nonce: str, address: str, limits: HubLimits) -> None:
        self.connection_id = connection_id
        self.nonce = nonce
        self.address = address
        self.organization_id = ""
        self.node_id: str | None = None
        self.node_name = ""
        self.original = False
        self.announcement_id: str | None = None
        self.began = False
        self.script_token_hash: str | None = None
        self.told: Told | None = None
        self.commands: dict[str, PendingCommand] = {}
        self.closed = asyncio.Event()
        self.heard_at = time.monotonic()
        self._limits = limits
        self._outgoing: asyncio.Queue[str | None] = asyncio.Queue(limits.outgoing)
        self._closing = asyncio.Event()
        self._ended = False
        self._close_record: str | None = None
        self._opened_at = time.monotonic()

    @property
    def known(self) -> bool:
        """Whether it has signed in or announced itself."""
        return self.node_id is not None or self.announcement_id is not None

    def send(self, target: str, *arguments: Any) -> None:
        """Queue a call to the node; one that does not keep up is closed. On the loop only."""
        self._put(wire.call(target, arguments))

    def close(self, reason: str | None, *, reconnect: bool = True) -> None:
        """End the connection with a close record; the first reason counts."""
        if self._close_record is None:
            self._close_record = wire.close(reason, reconnect=reconnect)
            self._closing.set()
            # Behind what still has to go out; a full queue is not waited for.
            if self._outgoing.full():
                self._outgoing.get_nowait()
            self._outgoing.put_nowait(None)

    async def serve(self, websocket: WebSocket, handle: Handler) -> None:
        """Speak with the node until one side ends it. Never raises for what the node does."""
        await websocket.accept()
        tasks: list[asyncio.Task[None]] = []
        try:
            reader = RecordReader()
            rest = await self._shake_hands(websocket)
            ends = [
                asyncio.create_task(self._write(websocket), name="hub write"),
                asyncio.create_task(self._wait_for_close(), name="hub close"),
            ]
            tasks = [
                *ends,
                asyncio.create_task(self._read(websocket, reader, rest, handle), name="hub read"),
                asyncio.create_task(self._beat(), name="hub beat"),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except (HubProtocolError, TimeoutError) as error:
            await self._refuse_handshake(websocket, str(error) or "The handshake took too long.")
        except (WebSocketDisconnect, OSError):
            pass
        finally:
            await self._finish(websocket, tasks)

    async def _finish(self, websocket: WebSocket, tasks: list[asyncio.Task[None]]) -> None:
        self._ended = True
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect | OSError | RuntimeError):
                log.error(
                    "The connection %s failed.", self.connection_id, exc_info=result, extra={"action": "hub_failed"}
                )
        for command in self.commands.values():
            if not command.answer.done():
                command.answer.set_result(None)
        # The far end may be gone already; then there is nobody to tell.
        with contextlib.suppress(WebSocketDisconnect, OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                if tasks and self._close_record is not None:
                    await websocket.send_text(self._close_record)
                await websocket.close()
        self.closed.set()

    async def _shake_hands(self, websocket: WebSocket) -> str:
        """Do the handshake; what came behind it in the same frame."""
        async with asyncio.timeout(self._limits.handshake_seconds):
            text = await _receive_text(websocket)
        request, separator, rest = text.partition(RECORD_SEPARATOR)
        try:
            document = json.loads(request)
        except ValueError as error:
            raise HubProtocolError("The handshake is not JSON.") from error
        if not separator or not isinstance(document, dict) or document.get("protocol") != "json":
            raise HubProtocolError('The handshake must be {"protocol":"json","version":1} and 0x1E.')
        # 0 is what newer clients of the original's agent say; it has no other meaning than 1.
        if document.get("version") not in (0, 1):
            raise HubProtocolError("Only version 1 of the JSON hub protocol is spoken here.")
        await websocket.send_text(HANDSHAKE_RESPONSE)
        return rest

    async def _refuse_handshake(self, websocket: WebSocket, reason: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                await websocket.send_text(wire.handshake_error(reason))

    async def _read(self, websocket: WebSocket, reader: RecordReader, rest: str, handle: Handler) -> None:
        limits = self._limits
        rate = RateLimit(limits.records_a_second, limits.records_burst, time.monotonic())
        # Every call of a stranger asks the database, at nobody's cost but the portal's.
        stranger = RateLimit(limits.stranger_records_a_second, limits.stranger_records_burst, time.monotonic())
        text = rest
        try:
            while True:
                if text and RECORD_SEPARATOR not in text:
                    # A piece of a record costs as much as a record.
                    rate.take(time.monotonic())
                for record in reader.feed(text):
                    rate.take(time.monotonic())
                    if self.node_id is None:
                        stranger.take(time.monotonic())
                    await self._take(record, handle)
                self.heard_at = time.monotonic()
                async with asyncio.timeout(limits.silence_seconds):
                    text = await _receive_text(websocket)
        except HubProtocolError as error:
            log.warning(
                "Connection %s from %s was closed: %s",
                self.connection_id,
                self.address,
                error,
                extra={"action": "hub_refused"},
            )
            self.close(str(error))
        except TimeoutError:
            self.close(f"Nothing was heard for {limits.silence_seconds:.0f} s.")
        except WebSocketDisconnect:
            pass
        finally:
            self.close(None)

    async def _take(self, record: Invocation | Completion | Ping | Close, handle: Handler) -> None:
        match record:
            case Invocation():
                reply = await handle(self, record)
                if record.invocation_id is not None:
                    self._put(wire.completion(record.invocation_id, result=reply.result, error=reply.error))
                for call in reply.then:
                    self._put(wire.call(call.target, call.arguments))
                if reply.close is not None:
                    self.close(reply.close)
            case Close():
                self.close(None)
            case Ping() | Completion():
                pass

    async def _write(self, websocket: WebSocket) -> None:
        while (text := await self._outgoing.get()) is not None:
            await websocket.send_text(text)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._limits.ping_seconds)
            self._put(wire.PING)
            if not self.known and time.monotonic() - self._opened_at > self._limits.unknown_seconds:
                self.close("Nobody signed in on this connection.")

    async def _wait_for_close(self) -> None:
        """End when a close was asked for and the writer did not come to its end in time."""
        await self._closing.wait()
        await asyncio.sleep(_CLOSE_TIMEOUT_SECONDS)

    def _put(self, text: str) -> None:
        if self._ended:
            return
        try:
            self._outgoing.put_nowait(text)
        except asyncio.QueueFull:
            self.close("The node does not read what it is sent.")


async def _receive_text(websocket: WebSocket) -> str:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000), message.get("reason"))
    text = message.get("text")
    if not isinstance(text, str):
        raise HubProtocolError("The hub speaks text, and this frame is binary.")
    return text
