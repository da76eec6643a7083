"""HTTP requests and a WebSocket to one server, and nothing else.

A node may be a very small machine: here are a protocol core for each of the two (h11, wsproto) and asyncio's streams
under them. A web framework's client would take a quarter of the agent's memory and a third of its start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections import deque
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

CLOSE_SECONDS = 5.0
"""How long the server may take to answer a WebSocket's close."""
HANG_UP_SECONDS = 2.0
"""How long TLS and TCP may take to end in good order."""
IDLE_LIMIT = 4
"""Connections kept for a further request."""
_FAMILY_DELAY_SECONDS = 0.25
"""When the next of a host's addresses is tried beside one that does not answer (RFC 8305)."""
_READ_BYTES = 64 * 1024
_UNQUOTED = "/?&=%:@!$'()*+,;"


class StatusError(Exception):
    """The server did not let a WebSocket be opened, and answered `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class FingerprintError(Exception):
    """The server's certificate is not the pinned one; `got` is its SHA-256."""

    def __init__(self, got: bytes) -> None:
        super().__init__(got.hex())
        self.got = got


class CannotConnectError(OSError):
    """No connection could be made; the text says why."""


class TooLargeError(Exception):
    """An answer is longer than was allowed."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How a server proves who it is.

    Attributes:
        context: verifies; None for the system's authorities, which take their time and memory only once connected to.
        fingerprint: SHA-256 of the one certificate that is accepted; empty when `context` verifies.
    """

    context: ssl.SSLContext | None = None
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered: the body of a 200; of any other status it is not read."""

    status: int
    body: bytes


class Server:
    """A server and the connections to it. On the loop only.

    Errors are OSError (CannotConnectError and ssl.SSLError among them), FingerprintError, h11.ProtocolError and
    wsproto's RemoteProtocolError; time limits are the caller's.

    Args:
        url: `http://` or `https://`, perhaps with a path that everything is below.
        tls: for `https://`.
    """

    def __init__(self, url: str, *, tls: Tls) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = tls if parts.scheme == "https" else None
        self._context = tls.context
        self._port = parts.port or (443 if self._tls else 80)
        self._authority = parts.netloc.rpartition("@")[2].encode("idna").decode("ascii")
        self._path = parts.path.rstrip("/")
        self._idle: list[_Link] = []
        self._cookies: dict[str, str] = {}
        """A load balancer's mark of the replica that it chose: what was negotiated is known there."""

    async def request(self, method: str, path: str, *, token: str = "", limit_bytes: int) -> Answer:
        """Ask, and read the answer. Raises TooLargeError for a body of more than `limit_bytes`."""
        headers = self._headers()
        if token:
            headers.append(("Authorization", f"Bearer {token}"))
        if method != "GET":
            headers.append(("Content-Length", "0"))
        request = h11.Request(method=method, target=self._target(path), headers=[("Host", self._authority), *headers])
        if self._idle and method == "GET":
            try:
                return await self._exchange(self._idle.pop(), request, limit_bytes)
            except ConnectionError:
                pass  # the server ended the idle connection before it saw the request
        return await self._exchange(await self._connect(), request, limit_bytes)

    async def open_websocket(self, path: str, *, limit_bytes: int) -> WebSocket:
        """Open a WebSocket for messages of at most `limit_bytes`. Raises StatusError when the server refuses."""
        if self._idle:
            try:
                return await self._upgrade(self._idle.pop(), path, limit_bytes)
            except ConnectionError:
                pass  # as above
        return await self._upgrade(await self._connect(), path, limit_bytes)

    async def close(self) -> None:
        """End the idle connections."""
        while self._idle:
            await self._idle.pop().close()

    async def _connect(self) -> _Link:
        if self._tls is not None and self._context is None:
            self._context = await asyncio.to_thread(ssl.create_default_context)
        try:
            reader, writer = await asyncio.open_connection(
                self._host,
                self._port,
                ssl=None if self._tls is None else self._context,
                happy_eyeballs_delay=_FAMILY_DELAY_SECONDS,
            )
        except (ssl.SSLError, TimeoutError):
            raise
        except OSError as error:
            raise CannotConnectError(error.strerror or str(error)) from error
        link = _Link(reader, writer)
        if self._tls is not None and self._tls.fingerprint:
            # Before anything is said: a stranger is not to see even a request.
            certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            got = hashlib.sha256(certificate or b"").digest()
            if got != self._tls.fingerprint:
                link.abort()
                raise FingerprintError(got)
        return link

    async def _exchange(self, link: _Link, request: h11.Request, limit_bytes: int) -> Answer:
        try:
            answer, cookies = await link.exchange(request, limit_bytes)
        except BaseException:
            link.abort()
            raise
        for cookie in cookies:
            name, equals, value = cookie.partition(";")[0].partition("=")
            if equals:
                self._cookies[name.strip()] = value.strip()
        if link.reusable and len(self._idle) < IDLE_LIMIT:
            self._idle.append(link)
        else:
            await link.close()
        return answer

    async def _upgrade(self, link: _Link, path: str, limit_bytes: int) -> WebSocket:
        socket = WebSocket(link, limit_bytes)
        headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in self._headers()]
        try:
            await socket.open(Request(host=self._authority, target=self._target(path), extra_headers=headers))
        except BaseException:
            link.abort()
            raise
        return socket

    def _target(self, path: str) -> str:
        # What is quoted already stays.
        return quote(self._path + path, safe=_UNQUOTED)

    def _headers(self) -> list[tuple[str, str]]:
        headers = [("User-Agent", "outstation"), ("Accept", "*/*"), ("Accept-Encoding", "identity")]
        if self._cookies:
            headers.append(("Cookie", "; ".join(f"{name}={value}" for name, value in self._cookies.items())))
        return headers


class _Link:
    """One connection, and the requests on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self.reusable = False

    async def exchange(self, request: h11.Request, limit_bytes: int) -> tuple[Answer, list[str]]:
        """Send a request; the answer and the cookies that came with it."""
        self.reusable = False
        await self.write((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        status, cookies, body = 0, list[str](), bytearray()
        while not isinstance(event := await self._next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
                if status != 200:
                    return Answer(status, b""), []
                cookies = [value.decode("latin-1") for name, value in event.headers if name == b"set-cookie"]
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > limit_bytes:
                    raise TooLargeError(f"longer than {limit_bytes} bytes")
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self.reusable = True
        return Answer(status, bytes(body)), cookies

    async def _next_event(self) -> h11.Event:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self.read()
                if not data and self._http.their_state is h11.SEND_RESPONSE:
                    raise ConnectionResetError("the server closed the connection")
                self._http.receive_data(data)
            elif isinstance(event, h11.Event):
                return event
            else:
                raise ConnectionResetError("the server closed the connection")

    async def read(self) -> bytes:
        """What comes next; nothing at the end of the connection."""
        return await self._reader.read(_READ_BYTES)

    async def write(self, data: bytes) -> None:
        """Send; waits while the server does not read."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """End the connection."""
        self._writer.close()
        try:
            async with asyncio.timeout(HANG_UP_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self._writer.transport.abort()


class WebSocket:
    """An open WebSocket. `send` from several tasks, `receive` from one. On the loop only."""

    def __init__(self, link: _Link, limit_bytes: int) -> None:
        self._link = link
        self._limit_bytes = limit_bytes
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: deque[Event] = deque()
        self._parts: list[str] | list[bytes] = []
        self._size = 0
        self._reading = False
        self.closed = False
        """Nothing can be sent any more."""

    async def open(self, request: Request) -> None:
        """Shake hands. Raises StatusError when the server refuses."""
        await self._link.write(self._protocol.send(request))
        event = await self._next_event()
        if isinstance(event, RejectConnection):
            raise StatusError(event.status_code)
        if not isinstance(event, AcceptConnection):
            raise ConnectionResetError("the server closed the connection")

    async def send(self, text: str) -> None:
        """Send a message. Raises ConnectionError when the connection has ended."""
        if self.closed:
            raise ConnectionResetError("the connection is closed")
        try:
            data = self._protocol.send(TextMessage(text))
        except LocalProtocolError as error:
            raise ConnectionResetError("the connection is closing") from error
        await self._link.write(data)

    async def receive(self) -> str | bytes | None:
        """The next message; None when the server has closed the connection."""
        self._reading = True
        try:
            while not self.closed:
                message = await self._take(await self._next_event())
                if message is not None:
                    return message
        finally:
            self._reading = False
        return None

    async def close(self) -> None:
        """Say goodbye, and end the connection."""
        with contextlib.suppress(OSError, TimeoutError, RemoteProtocolError, LocalProtocolError):
            if not self.closed:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._link.write(self._protocol.send(CloseConnection(code=1000)))
                    while not self._reading and await self.receive() is not None:
                        pass
        self.closed = True
        await self._link.close()

    def abort(self) -> None:
        """End the connection at once."""
        self.closed = True
        self._link.abort()

    async def _next_event(self) -> Event | None:
        while not self._events:
            data = await self._link.read()
            if not data:
                self.closed = True
                return None
            self._protocol.receive_data(data)
            self._events.extend(self._protocol.events())
        return self._events.popleft()

    async def _take(self, event: Event | None) -> str | bytes | None:
        match event:
            case TextMessage(data=data) | BytesMessage(data=data):
                self._size += len(data)
                if self._size > self._limit_bytes:
                    raise ConnectionAbortedError(f"a message is longer than {self._limit_bytes} bytes")
                self._parts.append(data)  # type: ignore[arg-type]  # a message is all text or all bytes
                if event.message_finished:
                    message = (b"" if isinstance(event, BytesMessage) else "").join(self._parts)  # type: ignore[arg-type]
                    self._parts, self._size = [], 0
                    return message
            case Ping():
                await self._link.write(self._protocol.send(event.response()))
            case CloseConnection():
                self.closed = True
                with contextlib.suppress(OSError, LocalProtocolError):
                    await self._link.write(self._protocol.send(event.response()))
        return None
