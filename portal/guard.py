"""What every request passes: the portal at hand, requests of other sites refused, security headers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from portal.access import SESSION_COOKIE
from portal.problems import problem

if TYPE_CHECKING:
    from portal.portal import Portal

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# A page of another site can have a browser send these without asking first; with JSON it cannot.
_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
_HUB = "/nodeHub"
_PAGES_SOCKET = "/_nicegui_ws"
"""The pages' own connection; where a WebSocket cannot be had it is made of requests, some of which are GET."""
BODY_LIMIT_BYTES = 2 * 1024 * 1024
"""A longer body is refused, whether its length was said before or not."""

# The pages' framework writes its scripts into the page and compiles templates in the browser; everything is served
# by the portal itself.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_API_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Guard:
    """The outermost middleware, for HTTP and WebSocket."""

    def __init__(self, app: ASGIApp, *, portal: Portal) -> None:
        self._app = app
        self._portal = portal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["portal"] = self._portal
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            if scope["path"] != _HUB and not self._same_origin(headers):
                await send({"type": "websocket.close", "code": 1008, "reason": "cross-site"})
                return
            await self._app(scope, receive, send)
            return
        may_change = scope["method"] not in _SAFE_METHODS or scope["path"].startswith(_PAGES_SOCKET)
        if may_change and not self._may_change(headers, scope["method"]):
            refusal = problem(
                403,
                "cross_site_request",
                "Not allowed",
                "This request came from another site. Programs: send JSON, or the header `Origin` with the portal's "
                "address.",
            )
            await refusal(scope, receive, self._with_headers(scope, send))
            return
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_LIMIT_BYTES:
            refusal = problem(413, "body_too_large", "The request is too large", _too_large().detail)
            await refusal(scope, receive, self._with_headers(scope, send))
            return
        await self._app(scope, _bounded(receive), self._with_headers(scope, send))

    def _may_change(self, headers: Headers, method: str) -> bool:
        """Whether a request that may change something does not come from a page of another site."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        if "origin" in headers:
            return self._same_origin(headers)
        if f"{SESSION_COOKIE}=" not in headers.get("cookie", ""):
            return True
        # A program, or a very old browser: only what a foreign page could not have sent.
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return method != "POST" or (bool(kind) and kind not in _FORM_TYPES)

    def _same_origin(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return True
        own = self._portal.settings.public_url
        # A proxy may name itself to the portal by another name than browsers name the portal to the proxy.
        names = {headers.get("host", "").casefold(), urlsplit(own).netloc.casefold() if own else None}
        return urlsplit(origin).netloc.casefold() in names

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        tls = self._portal.url.startswith("https://")
        path: str = scope["path"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                api = path.startswith(("/api/", "/nodeHub"))
                headers.setdefault("Content-Security-Policy", _API_POLICY if api else _PAGE_POLICY)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("X-Frame-Options", "DENY")
                headers.setdefault("Referrer-Policy", "same-origin")
                headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
                if api:
                    headers.setdefault("Cache-Control", "no-store")
                if tls:
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        return send_with_headers


def _too_large() -> HTTPException:
    return HTTPException(413, f"The body is larger than {BODY_LIMIT_BYTES // 1024} KiB; send less at once.")


def _bounded(receive: Receive) -> Receive:
    taken = 0

    async def receive_bounded() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > BODY_LIMIT_BYTES:
                raise _too_large()
        return message

    return receive_bounded
