"""The emulator's HTTP API: what a cloud back end would do through Azure, and what a test wants to know.

It hands out device keys and changes everything without asking who calls. Therefore it is on loopback by default, where
it refuses callers that name another host or come from a web page; anywhere else it needs a bearer token.
Documented in `docs/reference/iothub-emulator.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from agent import __version__
from agent.errors import ConfigError, OutstationError, StorageError
from emulator.errors import EmulatorError, MessageInvalidError
from emulator.hub import CLOUD_MESSAGE_LIFE_SECONDS, decode_payload
from emulator.registry import Device, pem_thumbprint

if TYPE_CHECKING:
    from emulator.server import Emulator

logger = logging.getLogger(__name__)

_BODY_LIMIT_BYTES = 1024 * 1024
_PAGE_LIMIT = 1000
_STREAM_SILENCE_SECONDS = 15.0
_METHOD_TIMEOUT_LIMIT_SECONDS = 300.0

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _DeviceRequest(msgspec.Struct, forbid_unknown_fields=True):
    enabled: bool | None = None
    thumbprint: str | None = None
    secondary_thumbprint: str | None = None
    certificate: str | None = None
    primary_key: str = ""
    secondary_key: str = ""


class _MethodRequest(msgspec.Struct, forbid_unknown_fields=True):
    payload: Any = None
    response_timeout_seconds: float = 30.0
    connect_timeout_seconds: float = 0.0


class _MessageRequest(msgspec.Struct, forbid_unknown_fields=True):
    payload: Any = ""
    payload_base64: str | None = None
    properties: dict[str, str] = {}
    message_id: str | None = None
    correlation_id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    life_seconds: float = CLOUD_MESSAGE_LIFE_SECONDS


class HttpApi:
    """Serves the API of one emulator. For the loop only."""

    def __init__(self, emulator: Emulator, *, token: str, names: Sequence[str]) -> None:
        self._emulator = emulator
        self._token = token
        self._names = frozenset(names)
        self._streams: set[asyncio.Task[Any]] = set()
        application = web.Application(client_max_size=_BODY_LIMIT_BYTES, middlewares=[self._edge])
        application.add_routes(
            [
                web.get("/", self._status),
                web.get("/devices", self._devices),
                web.get("/devices/{device}", self._device),
                web.put("/devices/{device}", self._put_device),
                web.delete("/devices/{device}", self._delete_device),
                web.get("/devices/{device}/twin", self._twin),
                web.patch("/devices/{device}/twin/desired", self._patch_desired),
                web.post("/devices/{device}/methods/{name}", self._invoke),
                web.post("/devices/{device}/messages", self._send),
                web.post("/devices/{device}/cut", self._cut),
                web.get("/messages", self._messages),
                web.get("/messages/stream", self._stream),
                web.get("/report", self._report),
                web.get("/faults", self._faults),
                web.post("/faults", self._set_faults),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=2.0, handler_cancellation=True)

    async def start(self, host: str, port: int) -> str:
        """Listen; return the API's URL. Raises ConfigError when the address is taken."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"The HTTP API cannot listen on {host} port {port} ({error.strerror}); --http-port 0 takes any."
            ) from error
        bound = self._runner.addresses[0]
        return f"http://[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"http://{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """End the streams and stop listening."""
        for stream in self._streams:
            stream.cancel()
        await self._runner.cleanup()

    @web.middleware
    async def _edge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who may call, and what an error looks like: the one place for both."""
        refusal = self._refusal(request)
        if refusal is not None:
            return _error(*refusal)
        try:
            return await handler(request)
        except EmulatorError as error:
            return _error(error.http_status, error.code, str(error))
        except StorageError as error:
            return _error(507, error.code, str(error))
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _error(error.status, "http_error", f"{request.method} {request.path}: {error.reason}.")
        except OutstationError as error:
            return _error(400, error.code, str(error))

    def _refusal(self, request: web.Request) -> tuple[int, str, str] | None:
        if self._token:
            presented = request.headers.get("Authorization", "")
            if not hmac.compare_digest(presented.encode("utf-8", "surrogateescape"), f"Bearer {self._token}".encode()):
                return 401, "token_needed", "Send the --api-token as `Authorization: Bearer …`."
        elif not self._is_local(request.host):
            return 403, "host_refused", f"This API is for loopback; it is not {request.host[:200]}."
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return 403, "origin_refused", "This API does not answer to web pages."
        return None

    def _is_local(self, host: str) -> bool:
        # A name that an outsider made resolve to 127.0.0.1 shows here (DNS rebinding).
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name in self._names:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    async def _status(self, request: web.Request) -> web.Response:
        emulator = self._emulator
        return _json(
            {
                "name": "outstation iothub",
                "version": __version__,
                "mqtt_host": emulator.mqtt_host,
                "mqtt_port": emulator.mqtt_port,
                "devices": len(emulator.devices()),
                "connected": emulator.hub.connected_devices(),
                "connections": emulator.hub.connections,
                "last_message_id": emulator.last_message_id,
                "refusals": list(emulator.hub.refusals),
                "faults": emulator.faults,
            }
        )

    async def _devices(self, request: web.Request) -> web.Response:
        return _json({"devices": [self._describe(device) for device in self._emulator.devices()]})

    async def _device(self, request: web.Request) -> web.Response:
        return _json(self._describe(self._emulator.device(request.match_info["device"])))

    async def _put_device(self, request: web.Request) -> web.Response:
        name = request.match_info["device"]
        asked = await _body(request, _DeviceRequest)
        thumbprints = [print_ for print_ in (asked.thumbprint, asked.secondary_thumbprint) if print_]
        if asked.certificate:
            thumbprints.append(pem_thumbprint(asked.certificate))
        is_new = all(device.id != name for device in self._emulator.devices())
        device = await self._emulator.create_device(
            name,
            thumbprints=thumbprints,
            primary_key=asked.primary_key,
            secondary_key=asked.secondary_key,
            enabled=asked.enabled,
        )
        document = self._describe(device)
        document["connection_string"] = self._emulator.connection_string(name)
        document["certificate_authority"] = self._emulator.certificate_authority
        return _json(document, status=201 if is_new else 200)

    async def _delete_device(self, request: web.Request) -> web.Response:
        await self._emulator.delete_device(request.match_info["device"])
        return web.Response(status=204)

    async def _twin(self, request: web.Request) -> web.Response:
        return _json(self._emulator.twin(request.match_info["device"]))

    async def _patch_desired(self, request: web.Request) -> web.Response:
        patch = await _body(request, dict[str, Any])
        return _json(await self._emulator.patch_desired(request.match_info["device"], patch))

    async def _invoke(self, request: web.Request) -> web.Response:
        asked = await _body(request, _MethodRequest)
        for seconds in (asked.response_timeout_seconds, asked.connect_timeout_seconds):
            if not 0 <= seconds <= _METHOD_TIMEOUT_LIMIT_SECONDS:
                raise MessageInvalidError(f"A method's timeouts may be 0 to {_METHOD_TIMEOUT_LIMIT_SECONDS:g} s.")
        result = await self._emulator.invoke_method(
            request.match_info["device"],
            request.match_info["name"],
            asked.payload,
            response_timeout_seconds=asked.response_timeout_seconds,
            connect_timeout_seconds=asked.connect_timeout_seconds,
        )
        return _json({"status": result.status, "payload": result.payload})

    async def _send(self, request: web.Request) -> web.Response:
        asked = await _body(request, _MessageRequest)
        given = {} if asked.payload_base64 is None else {"payload_base64": asked.payload_base64}
        optional = {
            name: getattr(asked, name)
            for name in ("message_id", "correlation_id", "content_type", "content_encoding")
            if getattr(asked, name)
        }
        message_id = await self._emulator.send_message(
            request.match_info["device"],
            decode_payload(given or {"payload": asked.payload}),
            properties=asked.properties,
            system=optional,
            life_seconds=asked.life_seconds,
        )
        return _json({"message_id": message_id}, status=202)

    async def _cut(self, request: web.Request) -> web.Response:
        device = self._emulator.device(request.match_info["device"])
        return _json({"links": self._emulator.cut(device.id)})

    async def _messages(self, request: web.Request) -> web.Response:
        messages = await self._emulator.messages(
            device=request.query.get("device"),
            after=_number(request, "after", 0),
            limit=min(_number(request, "limit", 100), _PAGE_LIMIT),
        )
        return _json({"messages": [message.document() for message in messages]})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        after = _number(request, "after", None)
        if after is None:
            # What a browser or an SSE client sends by itself when it comes back.
            resume = request.headers.get("Last-Event-ID", "")
            after = int(resume) if resume.isascii() and resume.isdecimal() else self._emulator.last_message_id
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        beat = asyncio.create_task(_beat(response))
        try:
            async for message in self._emulator.follow(device=request.query.get("device"), after=after):
                data = msgspec.json.encode(message.document()).decode()
                await response.write(f"id: {message.id}\nevent: telemetry\ndata: {data}\n\n".encode())
        except ConnectionError:
            logger.debug("a stream's reader left", extra={"action": "stream"})
        finally:
            self._streams.discard(task)
            beat.cancel()
        return response

    async def _report(self, request: web.Request) -> web.Response:
        return _json(await self._emulator.report())

    async def _faults(self, request: web.Request) -> web.Response:
        return _json(self._emulator.faults)

    async def _set_faults(self, request: web.Request) -> web.Response:
        return _json(self._emulator.set_faults(**await _body(request, dict[str, Any])))

    def _describe(self, device: Device) -> dict[str, Any]:
        """A device without its secrets."""
        return {
            "id": device.id,
            "authentication": device.authentication,
            "thumbprints": device.thumbprints,
            "enabled": device.enabled,
            "connected": self._emulator.is_connected(device.id),
        }


async def _beat(response: web.StreamResponse) -> None:
    """Show a stream's reader that it is alive."""
    with contextlib.suppress(ConnectionError):
        while True:
            await asyncio.sleep(_STREAM_SILENCE_SECONDS)
            await response.write(b": alive\n\n")


async def _body(request: web.Request, kind: type[T]) -> T:
    """The request's JSON (an empty body is `{}`). Raises MessageInvalidError."""
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MessageInvalidError(f"The request's body cannot be used: {error}.") from error


def _number(request: web.Request, name: str, default: Any) -> Any:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise MessageInvalidError(f"{name} must be a whole number, not {text[:40]!r}.")
    return int(text)


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )


def _error(status: int, code: str, text: str) -> web.Response:
    return _json({"code": code, "error": text}, status=status)
