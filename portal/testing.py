"""A portal to test against, and a node that speaks to it: a real server on loopback, with time in the test's hands."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI

from agent.clock import Clock
from agent.hub import protocol
from portal.app import create_app
from portal.hub.limits import HubLimits
from portal.portal import Portal
from portal.server import PortalServer, listen, port_of
from portal.settings import Settings
from portal.tls import certificate_for

OWNER = "alice"
PASSWORD = "a sentence for tests"  # noqa: S105 - of a portal that lives for one test
PATIENCE_SECONDS = 20.0


class FakeClock:
    """Time that passes only when the test says so; `sleep` returns when enough of it has."""

    def __init__(self, wall: float = 1_800_000_000.0) -> None:
        self._wall = wall
        self._monotonic = 1000.0
        self._changed = asyncio.Condition()

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._wall

    def monotonic(self) -> float:
        """Seconds since boot."""
        return self._monotonic

    def boot_id(self) -> str:
        """The one boot of this clock."""
        return "00000000-0000-0000-0000-000000000000"

    async def sleep(self, seconds: float) -> None:
        """Wait until the test has let `seconds` pass."""
        until = self._monotonic + seconds
        async with self._changed:
            await self._changed.wait_for(lambda: self._monotonic >= until)

    async def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._wall += seconds
        self._monotonic += seconds
        async with self._changed:
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the API."""

    status: int
    body: Any
    text: str
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """The `code` of a problem document."""
        return str(self.body["code"])


class PortalClient:
    """The REST API as a program calls it; cookies are kept."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | AsyncIterator[bytes] | None = None,
    ) -> Answer:
        """One request."""
        async with self.session.request(
            method,
            f"{self.url}{path}",
            json=body,
            data=io.BytesIO(raw) if isinstance(raw, bytes) else raw,
            headers=headers,
            allow_redirects=False,
        ) as response:
            text = await response.text()
            is_json = "json" in response.headers.get("content-type", "")
            return Answer(response.status, json.loads(text) if text and is_json else None, text, dict(response.headers))

    async def done(self, method: str, path: str, body: Any = None) -> Any:
        """One request that has to succeed; its body."""
        answer = await self.call(method, path, body)
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.text}"
        return answer.body

    async def sign_in(self) -> None:
        """Sign in as the owner."""
        await self.done("POST", "/api/session", {"name": OWNER, "password": PASSWORD})


class RunningPortal(AbstractAsyncContextManager["RunningPortal"]):
    """A portal behind a real server on a free port of loopback, without pages.

    Example:
        async with RunningPortal(Settings(data=tmp_path)) as running:
            owner = await running.owner()
            node = await running.enrolled_node(owner)
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        limits: HubLimits | None = None,
        pages: Callable[[FastAPI], None] = lambda _: None,
    ) -> None:
        self._settings = replace(settings, port=0)
        self._clock = clock
        self._limits = limits
        self._pages = pages
        self._session: aiohttp.ClientSession | None = None
        self._server: PortalServer | None = None
        self._task: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self.portal: Portal
        self.url = ""

    async def __aenter__(self) -> Self:
        certificate = await asyncio.to_thread(certificate_for, self._settings)
        app = await asyncio.to_thread(self._make, certificate.fingerprint if certificate else None)
        self.portal = app.state.portal
        self._socket = listen(self._settings)
        self.portal.listening_on(port_of(self._socket))
        ready = asyncio.Event()
        self._server = PortalServer(app, certificate, on_ready=ready.set)
        try:
            await self.portal.start()
        except BaseException:
            self._socket.close()
            raise
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ready.wait()
        self.url = self.portal.url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=False), cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    def _make(self, fingerprint: str | None) -> FastAPI:
        return create_app(
            self._settings, clock=self._clock, fingerprint=fingerprint, hub_limits=self._limits, pages=self._pages
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()
        assert self._server is not None
        assert self._task is not None
        assert self._socket is not None
        self._server.should_exit = True
        await self._task
        self._socket.close()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[PortalClient]:
        """A client with cookies of its own, signed in as nobody."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=False), cookie_jar=aiohttp.CookieJar(unsafe=True)
        ) as session:
            yield PortalClient(self.url, session)

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[PortalClient]:
        """A client signed in as the owner, who is created with the set-up link when there is none."""
        async with self.client() as client:
            if self.portal.setup_url is not None and await self.portal.accounts.needs_setup():
                form = {"token": self.portal.setup_url.partition("token=")[2], "name": OWNER, "password": PASSWORD}
                await client.done("POST", "/api/setup", form)
            else:
                await client.sign_in()
            yield client

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[HubNode]:
        """A connection to the node hub with the handshake done."""
        assert self._session is not None
        async with self._session.post(f"{self.url}/nodeHub/negotiate") as response:
            negotiated = await response.json()
        async with self._session.ws_connect(f"{self.url}/nodeHub?id={negotiated['connectionId']}") as websocket:
            node = HubNode(websocket, negotiated["connectionId"], negotiated["nonce"])
            await websocket.send_str(protocol.HANDSHAKE_REQUEST)
            await node.shaken_hands()
            yield node

    async def get(self, path: str, *, token: str | None = None) -> tuple[int, bytes]:
        """Download something as a node does."""
        assert self._session is not None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self._session.get(self.url + path, headers=headers) as response:
            return response.status, await response.read()

    @asynccontextmanager
    async def enrolled(
        self, owner: PortalClient, name: str = "pump-1", tags: list[str] | None = None
    ) -> AsyncIterator[HubNode]:
        """A node of ours that is enrolled and signed in."""
        made = await owner.done("POST", "/api/verification-codes", {"tags": tags or []})
        async with self.connect() as node:
            await node.enrol(made["code"], name)
            await node.sign_in()
            yield node


@dataclass
class NodeIdentity:
    """What a node of ours keeps."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    id: str = ""
    name: str = ""
    organization_id: str = ""
    manifest_key: bytes = b""


class HubNode:
    """A node's side of a connection, record by record."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, connection_id: str, nonce: str) -> None:
        self.websocket = websocket
        self.connection_id = connection_id
        self.nonce = nonce
        self.identity = NodeIdentity()
        self.settings: dict[str, Any] = {}
        self._records: list[dict[str, Any]] = []
        self._rest = ""
        self._number = 0

    @property
    def id(self) -> str:
        """The node's id."""
        return self.identity.id

    async def shaken_hands(self) -> None:
        """Wait for the answer to the handshake."""
        text = str(await self._text())
        answer, _, self._rest = text.partition(protocol.RECORD_SEPARATOR)
        if answer != "{}":
            raise ConnectionError(answer)

    async def send(self, target: str, *arguments: Any, invocation_id: str | None = None) -> None:
        """Call the portal."""
        record = {"type": 1, "target": target, "arguments": list(arguments)}
        if invocation_id is not None:
            record["invocationId"] = invocation_id
        await self.send_text(json.dumps(record) + protocol.RECORD_SEPARATOR)

    async def send_text(self, text: str) -> None:
        """Send anything at all."""
        await self.websocket.send_str(text)

    async def invoke(self, target: str, *arguments: Any) -> dict[str, Any]:
        """Call the portal and wait for the completion record."""
        self._number += 1
        number = f"n{self._number}"
        await self.send(target, *arguments, invocation_id=number)
        return await self.record(lambda record: record["type"] == 3 and record["invocationId"] == number)

    async def called(self, target: str) -> list[Any]:
        """Wait for a call of the portal; its arguments."""
        record = await self.record(lambda record: record["type"] == 1 and record["target"] == target)
        arguments: list[Any] = record["arguments"]
        return arguments

    async def record(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for a record; others stay for later. Raises ConnectionError when the connection ends before."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for index, record in enumerate(self._records):
                    if wanted(record):
                        return self._records.pop(index)
                await self._receive()

    async def closed(self) -> str | None:
        """Wait for the end of the connection; the error of the close record."""
        try:
            record = await self.record(lambda record: record["type"] == 7)
        except ConnectionError:
            return None
        error: str | None = record.get("error")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.websocket.closed:
                message = await self.websocket.receive()
                if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                    break
        return error

    async def _receive(self) -> None:
        *records, self._rest = (self._rest + str(await self._text())).split(protocol.RECORD_SEPARATOR)
        self._records.extend(json.loads(record) for record in records)

    async def _text(self) -> str:
        message = await self.websocket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(f"The portal ended the connection: {message.type.name} {message.data}")
        text: str = message.data
        return text

    async def enrol(self, code: str, name: str = "") -> None:
        """Become a node. Raises ConnectionError with the arguments of `errorMessage` when the portal refuses."""
        public = base64.b64encode(self.identity.key.public_key().public_bytes_raw()).decode()
        facts = {"publicKey": public, "machineName": "testing", "agentVersion": "0", "platform": "Linux"}
        await self.send("createNode", code, "testing", name, facts, invocation_id="enrol")
        created = await self._outcome("nodeCreated")
        self.identity.id = created["id"]
        self.identity.name = created["nodeName"]
        self.identity.organization_id = created["organizationId"]
        self.identity.manifest_key = base64.b64decode(created["manifestKey"])

    async def sign_in(self, identity: NodeIdentity | None = None, **changes: Any) -> dict[str, Any]:
        """Sign in; the settings. Raises ConnectionError with the arguments of `errorMessage`."""
        self.identity = identity or self.identity
        challenge = protocol.sign_in_challenge(
            connection_id=self.connection_id, nonce=self.nonce, node_name=self.identity.name
        )
        request = protocol.sign_in_request(
            node_id=self.identity.id,
            node_name=self.identity.name,
            organization_id=self.identity.organization_id,
            machine_name="testing",
            agent_version="1.2.3",
            platform="Linux x86_64",
            ip_addresses=["192.0.2.7"],
            mac_addresses=["02:00:00:00:00:07"],
            signature=self.identity.key.sign(challenge),
            wall=0.0,
        )
        await self.send("signInAsync", {**request, **changes}, invocation_id="signin")
        self.settings = await self._outcome("signInMessage")
        return self.settings

    def manifest(self, signed: dict[str, str] | None = None) -> protocol.Manifest:
        """The manifest of the last sign-in, or of an `updateDeployment`, its signature checked."""
        document = self.settings["manifest"] if signed is None else signed
        return msgspec.convert(document, protocol.SignedManifest).open(public_key=self.identity.manifest_key)

    async def _outcome(self, target: str) -> dict[str, Any]:
        record = await self.record(
            lambda record: (
                (record["type"] == 1 and record["target"] in (target, "errorMessage"))
                or (record["type"] == 3 and "error" in record)
            )
        )
        if record.get("target") != target:
            raise ConnectionError(record.get("arguments", record.get("error")))
        answer: dict[str, Any] = record["arguments"][0]
        return answer
