"""A portal's node hub for tests: a real server on loopback that records what it hears and says what it is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

import msgspec
from aiohttp import WSMsgType, web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.hub import protocol

ORGANIZATION = "11111111-2222-3333-4444-555555555555"


class FakeHub(AbstractAsyncContextManager["FakeHub"]):
    """Use `async with FakeHub() as hub:`; `hub.url` is its address.

    It enrols whoever has `hub.code`, checks sign-in signatures, serves `hub.scripts` and deploys them with
    `await hub.deploy("ReadGPIO.py", …)`. Every call of the node is in `hub.calls`; `await hub.called("signedIn")`
    waits for one.

    Args:
        tls: a server context for HTTPS; None for plain HTTP.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.url = ""
        self.code = "GOOD-CODE"
        self.taken_names: set[str] = set()
        self.scripts: dict[str, bytes] = {}
        self.calls: list[protocol.Invocation] = []
        self.settings: dict[str, Any] = {}
        self.status = 200
        """What negotiate answers: set it to 503 to be a portal with a fault."""
        self.answer_heartbeats = True
        self.refuses: Callable[[protocol.Invocation], str] = lambda _: ""
        """The error that completes a call; empty for none."""
        self.original = False
        """Whether it speaks only the original's dialect: no nonce to sign, a secret where ours has keys."""
        self.sign_ins = 0
        self._tls = tls
        self._key = Ed25519PrivateKey.generate()
        self._nodes: dict[str, bytes] = {}
        self._nonces: dict[str, str] = {}
        self._sockets: set[web.WebSocketResponse] = set()
        self._news = asyncio.Condition()
        self._services: list[protocol.ManifestService] = []
        self._runner: web.AppRunner | None = None

    @property
    def manifest_key(self) -> str:
        """The organisation's public key, as an enrolment hands it out."""
        return base64.b64encode(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/nodeHub/negotiate", self._negotiate)
        app.router.add_get("/nodeHub", self._hub)
        app.router.add_get("/api/Scripts/{organization}/{file}/{version}", self._script)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"{'https' if self._tls else 'http'}://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()
        assert self._runner is not None
        await self._runner.cleanup()

    async def called(
        self, target: str, *, count: int = 1, where: Callable[[protocol.Invocation], bool] = lambda _: True
    ) -> list[protocol.Invocation]:
        """Wait until the node has called `target` `count` times, and return those calls."""

        def found() -> list[protocol.Invocation]:
            return [call for call in self.calls if call.target == target and where(call)]

        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: len(found()) >= count)
        return found()

    async def call(self, target: str, *arguments: Any) -> None:
        """Call `target` on every node that is connected."""
        for socket in list(self._sockets):
            await self._say(socket, target, *arguments)

    async def disconnect(self) -> None:
        """Cut every connection."""
        for socket in list(self._sockets):
            await socket.close()

    def assign(self, scripts: dict[str, str], **config: Any) -> None:
        """Make these scripts (file name → source) the node's deployment, for sign-ins from now on."""
        self._services = []
        for file, source in scripts.items():
            content = source.encode()
            self.scripts[file] = content
            self._services.append(
                protocol.ManifestService(
                    id=file.lower().replace(".", "_"),
                    file=file,
                    version="1.0",
                    sha256=hashlib.sha256(content).hexdigest(),
                    path=f"/api/Scripts/{ORGANIZATION}/{file}/1.0",
                    flow="test",
                    config=protocol.ServiceConfig(
                        general_config=[protocol.Property(id="enabled", value=True)],
                        static_config=[protocol.Property(id=key, value=value) for key, value in config.items()],
                    ),
                )
            )

    async def deploy(self, scripts: dict[str, str], **config: Any) -> None:
        """Assign and tell the connected nodes."""
        self.assign(scripts, **config)
        await self.call("updateDeployment", {"manifest": self.signed_manifest()})

    def signed_manifest(self, services: Iterable[protocol.ManifestService] | None = None) -> dict[str, str]:
        """The deployment as it travels."""
        listed = list(self._services if services is None else services)
        manifest = protocol.Manifest(
            node_id="node-1",
            organization_id=ORGANIZATION,
            deployment=hashlib.sha256(msgspec.json.encode(listed)).hexdigest(),
            services=listed,
        )
        document = msgspec.json.encode(manifest)
        return {"document": document.decode(), "signature": base64.b64encode(self._key.sign(document)).decode()}

    async def _negotiate(self, _: web.Request) -> web.Response:
        if self.status != 200:
            return web.Response(status=self.status)
        number = f"connection-{len(self._nonces) + 1}"
        self._nonces[number] = base64.b64encode(hashlib.sha256(number.encode()).digest()).decode()
        ours = {} if self.original else {"nonce": self._nonces[number]}
        return web.json_response({"negotiateVersion": 0, "connectionId": number, **ours})

    async def _script(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer script-token":
            return web.Response(status=401)
        return web.Response(body=self.scripts[request.match_info["file"]])

    async def _hub(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets.add(socket)
        reader = protocol.RecordReader()
        nonce = self._nonces.get(request.query.get("id", ""), "")
        try:
            first = await socket.receive()
            if first.data == protocol.HANDSHAKE_REQUEST:
                await socket.send_str(protocol.HANDSHAKE_RESPONSE)
                async for message in socket:
                    if message.type is WSMsgType.TEXT:
                        for record in reader.feed(message.data):
                            if isinstance(record, protocol.Invocation):
                                await self._hear(socket, record, request.query["id"], nonce)
        finally:
            self._sockets.discard(socket)
        return socket

    async def _say(self, socket: web.WebSocketResponse, target: str, *arguments: Any) -> None:
        await socket.send_str(protocol.encode(protocol.Invocation(target=target, arguments=list(arguments))))

    async def _hear(
        self, socket: web.WebSocketResponse, call: protocol.Invocation, connection_id: str, nonce: str
    ) -> None:
        if call.invocation_id is not None:
            completion = protocol.Completion(invocation_id=call.invocation_id, error=self.refuses(call) or None)
            await socket.send_str(protocol.encode(completion))
        match call.target:
            case "createNode":
                await self._create_node(socket, *call.arguments)
            case "signInAsync":
                await self._sign_in(socket, call.arguments[0], connection_id, nonce)
            case "heartBeat" if self.answer_heartbeats:
                await self._say(socket, "heartBeat", "echo")
        async with self._news:
            self.calls.append(call)
            self._news.notify_all()

    async def _create_node(
        self, socket: web.WebSocketResponse, code: str, prefix: str, name: str, facts: dict[str, str]
    ) -> None:
        if code != self.code:
            await self._say(socket, "errorMessage", "The code is not valid.", protocol.ERROR_INVALID_CODE)
        elif name in self.taken_names:
            await self._say(
                socket, "errorMessage", "The name is taken.", protocol.ERROR_INVALID_REQUEST, protocol.NAME_TAKEN_REASON
            )
        else:
            name = name or f"{prefix}-1"
            self._nodes[name] = base64.b64decode(facts["publicKey"])
            await self._say(
                socket,
                "nodeCreated",
                {"id": "node-1", "nodeName": name, "organizationId": ORGANIZATION, "manifestKey": self.manifest_key},
            )

    async def _sign_in(
        self, socket: web.WebSocketResponse, host: dict[str, Any], connection_id: str, nonce: str
    ) -> None:
        name = host["Name"]
        challenge = protocol.sign_in_challenge(connection_id=connection_id, nonce=nonce, node_name=name)
        try:
            Ed25519PublicKey.from_public_bytes(self._nodes[name]).verify(base64.b64decode(host["signature"]), challenge)
        except (KeyError, InvalidSignature):
            await self._say(socket, "errorMessage", "Who are you?", protocol.ERROR_SECRET_NOT_VALID)
            return
        self.sign_ins += 1
        await self._say(
            socket,
            "signInMessage",
            {
                "id": "node-1",
                "nodeName": name,
                "organizationId": ORGANIZATION,
                "organizationName": "test",
                "tags": [],
                "state": "Active",
                "debug": True,
                "scriptToken": "script-token",
                "manifest": self.signed_manifest(),
                **self.settings,
            },
        )
