"""The hub's HTTP and WebSocket client against servers that behave, and servers that do not."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import h11
import pytest
from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.errors import InsecureUrlError
from agent.hub.connection import check_portal_url, make_tls
from agent.hub.transport import (
    CannotConnectError,
    FingerprintError,
    Server,
    StatusError,
    TooLargeError,
    WebSocket,
)

LIMIT = 100_000
Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(converse: Conversation, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that says what the test says; gives its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await converse(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        server.close()


@asynccontextmanager
async def web_server(**routes: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """A real web server with a handler for each path."""
    app = web.Application()
    for name, handler in routes.items():
        app.router.add_route("*", f"/{name}", handler)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client(url: str, *, fingerprint: str = "") -> AsyncIterator[Server]:
    server = Server(url, tls=make_tls(fingerprint=fingerprint))
    try:
        async with asyncio.timeout(10):
            yield server
    finally:
        await server.close()


@asynccontextmanager
async def websocket(url: str, *, limit_bytes: int = LIMIT) -> AsyncIterator[WebSocket]:
    async with client(url) as server:
        socket = await server.open_websocket("/socket", limit_bytes=limit_bytes)
        try:
            yield socket
        finally:
            await socket.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    """A self-made certificate: the server's context and its fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "portal")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, hashlib.sha256(made.public_bytes(Encoding.DER)).hexdigest()


# --- Requests ---------------------------------------------------------------------------------------------------------


async def test_request_carries_its_token_and_returns_the_body() -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.method} {request.headers['Authorization']} {request.headers['Host']}")

    async with web_server(hello=hello) as url, client(url) as server:
        answer = await server.request("GET", "/hello", token="abc", limit_bytes=LIMIT)
    assert answer.body.decode() == f"GET Bearer abc {url.removeprefix('http://')}"


async def test_path_of_the_address_and_characters_beyond_ascii_are_kept() -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.rel_url.path}?{request.rel_url.query_string}")

    app = web.Application()
    app.router.add_get("/below/{rest:.*}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with client(f"http://127.0.0.1:{runner.addresses[0][1]}/below/") as server:
            answer = await server.request("GET", "/Größe 2.py/1%2F0?a=b", limit_bytes=LIMIT)
    finally:
        await runner.cleanup()
    assert answer.body.decode() == "/below/Größe 2.py/1/0?a=b"


async def test_body_in_chunks_is_put_together() -> None:
    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for part in (b"one ", b"two ", b"three"):
            await response.write(part)
        return response

    async with web_server(chunked=chunked) as url, client(url) as server:
        assert (await server.request("GET", "/chunked", limit_bytes=LIMIT)).body == b"one two three"


async def test_body_of_any_other_status_is_not_read() -> None:
    async def huge(request: web.Request) -> web.Response:
        return web.Response(status=404, body=bytes(LIMIT + 1))

    async with web_server(huge=huge) as url, client(url) as server:
        assert (await server.request("GET", "/huge", limit_bytes=LIMIT)).status == 404
        assert (await server.request("GET", "/huge", limit_bytes=LIMIT)).status == 404


async def test_body_above_the_limit_is_refused() -> None:
    async def huge(request: web.Request) -> web.Response:
        return web.Response(body=bytes(LIMIT + 1))

    async with web_server(huge=huge) as url, client(url) as server:
        with pytest.raises(TooLargeError):
            await server.request("GET", "/huge", limit_bytes=LIMIT)


async def test_one_connection_serves_requests_and_the_websocket_after_them() -> None:
    peers: list[object] = []

    async def hello(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.Response(text="hello")

    async def socket(request: web.Request) -> web.WebSocketResponse:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            await answer.send_str(message.data)
        return answer

    async with web_server(hello=hello, socket=socket) as url, client(url) as server:
        await server.request("POST", "/hello", limit_bytes=LIMIT)
        await server.request("GET", "/hello", limit_bytes=LIMIT)
        opened = await server.open_websocket("/socket", limit_bytes=LIMIT)
        await opened.send("echo")
        assert await opened.receive() == "echo"
        await opened.close()
    assert len(set(peers)) == 1
    assert len(peers) == 3


async def test_connection_that_the_server_ended_while_idle_is_replaced() -> None:
    connections = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with raw_server(once) as url, client(url) as server:
        for _ in range(3):
            assert (await server.request("GET", "/", limit_bytes=LIMIT)).body == b"ok"
    assert connections == 3


async def test_cookies_of_a_load_balancer_are_sent_back() -> None:
    async def negotiate(request: web.Request) -> web.Response:
        response = web.Response(text=request.headers.get("Cookie", "none"))
        response.set_cookie("replica", "7", path="/", httponly=True)
        return response

    async with web_server(negotiate=negotiate) as url, client(url) as server:
        assert (await server.request("POST", "/negotiate", limit_bytes=LIMIT)).body == b"none"
        assert (await server.request("POST", "/negotiate", limit_bytes=LIMIT)).body == b"replica=7"


async def test_server_that_closes_without_an_answer_is_a_connection_error() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with raw_server(silent) as url, client(url) as server:
        with pytest.raises(ConnectionError):
            await server.request("POST", "/", limit_bytes=LIMIT)


async def test_server_that_speaks_something_else_is_a_protocol_error() -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ready\r\n\r\n")
        await writer.drain()
        await reader.readuntil(b"\r\n\r\n")

    async with raw_server(other) as url, client(url) as server:
        with pytest.raises(h11.RemoteProtocolError):
            await server.request("GET", "/", limit_bytes=LIMIT)


async def test_body_that_ends_early_is_an_error() -> None:
    async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok")
        await writer.drain()

    async with raw_server(short) as url, client(url) as server:
        with pytest.raises(h11.RemoteProtocolError):
            await server.request("GET", "/", limit_bytes=LIMIT)


async def test_nobody_there_is_an_error_of_its_own() -> None:
    async with raw_server(lambda *_: asyncio.sleep(0)) as url:
        pass
    async with client(url) as server:
        with pytest.raises(CannotConnectError, match="Connect call failed"):
            await server.request("GET", "/", limit_bytes=LIMIT)


async def test_server_with_another_certificate_than_the_pinned_one_sees_no_request(
    certificate: tuple[ssl.SSLContext, str],
) -> None:
    context, fingerprint = certificate
    seen: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with raw_server(note, tls=context) as url:
        async with client(url, fingerprint="ab" * 32) as server:
            with pytest.raises(FingerprintError) as caught:
                await server.request("GET", "/", limit_bytes=LIMIT)
        async with client(url, fingerprint=fingerprint.upper()) as server:
            assert (await server.request("GET", "/", limit_bytes=LIMIT)).body == b"ok"
        async with client(url) as server:
            with pytest.raises(ssl.SSLCertVerificationError):
                await server.request("GET", "/", limit_bytes=LIMIT)
    assert caught.value.got.hex() == fingerprint
    assert b"G" in seen
    assert seen.count(b"G") == 1


# --- WebSocket --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def socket_server(converse: Callable[[web.WebSocketResponse], Awaitable[None]]) -> AsyncIterator[str]:
    async def socket(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse(autoping=False)
        await answer.prepare(request)
        await converse(answer)
        return answer

    async with web_server(socket=socket) as url:
        yield url


async def test_messages_travel_both_ways_and_in_order() -> None:
    async def echo(socket: web.WebSocketResponse) -> None:
        async for message in socket:
            await socket.send_str(message.data)

    async with socket_server(echo) as url, websocket(url) as socket:
        texts = [f"{number} äöü {'x' * number * 1000}" for number in range(50)]
        await asyncio.gather(*(socket.send(text) for text in texts))
        assert [await socket.receive() for _ in texts] == texts


async def test_message_in_fragments_is_put_together_and_a_ping_between_them_is_answered() -> None:
    ponged = asyncio.Event()

    async def fragments(socket: web.WebSocketResponse) -> None:
        writer = socket._writer  # aiohttp has no public way to send a fragment
        assert writer is not None
        writer.transport.write(b"\x01\x03one" + b"\x89\x02hi" + b"\x00\x04 two" + b"\x80\x06 three")
        message = await socket.receive()
        assert message.type is WSMsgType.PONG
        assert message.data == b"hi"
        ponged.set()

    async with socket_server(fragments) as url, websocket(url) as socket:
        assert await socket.receive() == "one two three"
        await ponged.wait()


async def test_message_above_the_limit_breaks_the_connection() -> None:
    async def flood(socket: web.WebSocketResponse) -> None:
        await socket.send_str("x" * 2000)
        await socket.receive()

    async with socket_server(flood) as url, websocket(url, limit_bytes=1000) as socket:
        with pytest.raises(ConnectionAbortedError, match="1000 bytes"):
            await socket.receive()


async def test_binary_message_comes_as_bytes() -> None:
    async def binary(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"\0\1")
        await socket.receive()

    async with socket_server(binary) as url, websocket(url) as socket:
        assert await socket.receive() == b"\0\1"


async def test_close_of_the_server_ends_the_messages_and_further_sends() -> None:
    async def bye(socket: web.WebSocketResponse) -> None:
        await socket.send_str("bye")
        await socket.close()

    async with socket_server(bye) as url, websocket(url) as socket:
        assert await socket.receive() == "bye"
        assert await socket.receive() is None
        assert socket.closed
        with pytest.raises(ConnectionError):
            await socket.send("anyone?")


async def test_server_that_vanishes_ends_the_messages() -> None:
    async def vanish(socket: web.WebSocketResponse) -> None:
        assert socket._writer is not None
        socket._writer.transport.close()

    async with socket_server(vanish) as url, websocket(url) as socket:
        assert await socket.receive() is None


async def test_goodbye_reaches_the_server() -> None:
    ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def wait(socket: web.WebSocketResponse) -> None:
        await socket.receive()
        ended.set_result(socket.close_code)

    async with socket_server(wait) as url:
        async with websocket(url):
            pass
        assert await asyncio.wait_for(ended, 10) == 1000


async def test_refused_websocket_says_with_which_status() -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=429)

    async with web_server(socket=refuse) as url, client(url) as server:
        with pytest.raises(StatusError) as caught:
            await server.open_websocket("/socket", limit_bytes=LIMIT)
    assert caught.value.status == 429


# --- Addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["https://portal.example:port", "https://portal.example:99999", f"https://{'a' * 64}.example", "https://:8080"],
)
def test_address_that_cannot_be_connected_to_is_refused(url: str) -> None:
    with pytest.raises(InsecureUrlError, match="is not a portal's address"):
        check_portal_url(url, insecure_http=False)


def test_address_with_a_name_beyond_ascii_is_accepted() -> None:
    assert check_portal_url("https://münchen.example/", insecure_http=False) == "https://münchen.example"
