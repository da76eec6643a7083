"""One connection to a portal's node hub: negotiate, WebSocket, handshake, invocations both ways."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import itertools
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

import aiohttp

from agent.errors import HubArgumentsError, HubCertificateError, HubProtocolError, HubUnreachableError, InsecureUrlError
from agent.hub import protocol

CONNECT_TIMEOUT_SECONDS = 20.0
INVOKE_TIMEOUT_SECONDS = 30.0


def check_portal_url(url: str, *, insecure_http: bool) -> str:
    """The portal's address without a trailing slash.

    Raises InsecureUrlError for plain HTTP to anything but loopback (unless `insecure_http`) and for anything that is
    not an HTTP address at all.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not _is_host(parts):
        raise InsecureUrlError(f"{url!r} is not a portal's address; it looks like https://portal.example.")
    if parts.scheme == "http" and not insecure_http and not _is_loopback(parts.hostname or ""):
        raise InsecureUrlError(
            f"{url} is plain HTTP: everyone on the way could read and change what the node runs. "
            "Use https://, or --insecure-http if the network is yours alone."
        )
    return url.rstrip("/")


def _is_host(parts: SplitResult) -> bool:
    try:
        # A port that is no number, or a name that no name server can be asked for, shows only here.
        return bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Tls = ssl.SSLContext | aiohttp.Fingerprint | bool
"""What aiohttp's `ssl=` takes; True stands for the system's authorities."""


def make_tls(*, fingerprint: str = "", certificate_authority: str = "") -> Tls:
    """What verifies the portal: a pinned certificate, a private authority, or the system's authorities.

    `fingerprint` is the SHA-256 of the certificate in hexadecimal, colons allowed.
    Raises HubCertificateError for a fingerprint or an authority that is not one.
    """
    if fingerprint:
        return aiohttp.Fingerprint(_parse_fingerprint(fingerprint))
    if not certificate_authority:
        # aiohttp has made a context of these already; another would cost a small board a tenth of a second.
        return True
    try:
        return ssl.create_default_context(cadata=certificate_authority)
    except ssl.SSLError as error:
        raise HubCertificateError(f"The certificate authority is not a PEM certificate: {error.reason}.") from error


def _parse_fingerprint(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise HubCertificateError(
            f"{text!r} is not a certificate's fingerprint: it must be 64 hexadecimal digits (SHA-256)."
        )
    return digest


class HubConnection(AbstractAsyncContextManager["HubConnection"]):
    """An open, shaken-hands connection; iterate it for the portal's invocations.

    Use `async with HubConnection(url, tls=…)`. Every error of the network is a HubUnreachableError, of TLS a
    HubCertificateError, of the protocol a HubProtocolError. On the loop only.
    """

    def __init__(self, url: str, *, tls: Tls) -> None:
        self.url = url
        self.connection_id = ""
        self.nonce = ""
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._reader = protocol.RecordReader(protocol.PORTAL_RECORD_LIMIT_BYTES)
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._pinger: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=8),
            timeout=aiohttp.ClientTimeout(total=CONNECT_TIMEOUT_SECONDS),
            # HTTPS_PROXY and NO_PROXY, as everything else on the machine honours them.
            trust_env=True,
        )
        try:
            await self._connect()
        except BaseException:
            await self._session.close()
            raise
        self._pinger = asyncio.create_task(self._ping(), name="hub ping")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pinger is not None:
            self._pinger.cancel()
        self._fail_waiting()
        if self._socket is not None:
            await self._socket.close()
        if self._session is not None:
            await self._session.close()

    async def _connect(self) -> None:
        answer = await self.request("POST", "/nodeHub/negotiate")
        try:
            document = protocol.decode_negotiation(answer)
        except HubProtocolError as error:
            raise HubProtocolError(f"{self.url} does not answer as a portal: {error}") from error
        self.connection_id, self.nonce = document.connection_id, document.nonce
        assert self._session is not None
        try:
            self._socket = await self._session.ws_connect(
                f"{self.url}/nodeHub",
                params={"id": self.connection_id},
                max_msg_size=2 * protocol.PORTAL_RECORD_LIMIT_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=5.0),
                # A frame that is half there counts for nothing: silence is judged by receive()'s own time-out.
                autoping=True,
            )
            await self._socket.send_str(protocol.HANDSHAKE_REQUEST)
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                first = await self._receive_text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(self.url, error) from error
        if first is None or not first.startswith(protocol.HANDSHAKE_RESPONSE):
            raise HubProtocolError(f"{self.url} refused the hub handshake: {(first or 'connection closed')[:200]}")
        self._early = first.removeprefix(protocol.HANDSHAKE_RESPONSE)

    async def request(self, method: str, path: str, *, token: str = "", limit_bytes: int = 4 * 1024 * 1024) -> bytes:
        """The body of an HTTP answer of the portal, at most `limit_bytes` long.

        Raises HubUnreachableError for 5xx and network faults, HubProtocolError for any other answer than 200.
        """
        assert self._session is not None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with self._session.request(
                method, self.url + path, headers=headers, allow_redirects=False
            ) as response:
                if response.status >= 500:
                    raise HubUnreachableError(
                        f"{self.url} answered {response.status} to {path}; the portal has a fault, try again later."
                    )
                if response.status != 200:
                    raise HubProtocolError(
                        f"{self.url} answered {response.status} to {path}; is it the address of an Outstation portal?"
                    )
                body = await response.content.read(limit_bytes + 1)
                while not response.content.at_eof() and len(body) <= limit_bytes:
                    body += await response.content.read(limit_bytes + 1 - len(body))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(self.url, error) from error
        if len(body) > limit_bytes:
            raise HubProtocolError(f"{self.url}{path} is larger than {limit_bytes} bytes.")
        return body

    async def send(self, target: str, *arguments: Any) -> None:
        """Call `target` without waiting for its completion. Raises HubUnreachableError when the link is gone."""
        await self._write(protocol.Invocation(target=target, arguments=list(arguments)))

    async def invoke(self, target: str, *arguments: Any, timeout: float = INVOKE_TIMEOUT_SECONDS) -> Any:
        """Call `target` and return what its completion holds.

        Raises HubUnreachableError when the link goes or no completion comes in `timeout` seconds, HubProtocolError
        when the completion is an error.
        """
        number = str(next(self._numbers))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._write(protocol.Invocation(target=target, arguments=list(arguments), invocation_id=number))
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError as error:
            raise HubUnreachableError(f"{self.url} did not answer {target} in {timeout:.0f} s.") from error
        finally:
            self._waiting.pop(number, None)

    async def invocations(self) -> AsyncIterator[protocol.Invocation]:
        """Yield what the portal calls, until it closes the connection or is silent for too long.

        Completions of our own calls are handed to who waits for them. Raises HubUnreachableError at the end of the
        connection, HubProtocolError for a record that is not of the protocol.
        """
        text: str | None = self._early
        try:
            while True:
                if text is None:
                    raise HubUnreachableError(f"{self.url} closed the connection.")
                for record in self._reader.feed(text):
                    match record:
                        case protocol.Invocation():
                            yield record
                        case protocol.Completion():
                            self._complete(record)
                        case protocol.Close(error=reason):
                            raise HubUnreachableError(
                                f"{self.url} closed the connection: {(reason or 'no reason given')[:300]}"
                            )
                        case protocol.Ping():
                            pass
                try:
                    async with asyncio.timeout(protocol.SERVER_TIMEOUT_SECONDS):
                        text = await self._receive_text()
                except TimeoutError as error:
                    raise HubUnreachableError(
                        f"{self.url} was silent for {protocol.SERVER_TIMEOUT_SECONDS:.0f} s."
                    ) from error
        finally:
            self._fail_waiting()

    def _complete(self, record: protocol.Completion) -> None:
        future = self._waiting.get(record.invocation_id)
        if future is None or future.done():
            return
        if record.error is not None:
            refused = record.error.startswith(protocol.ARGUMENTS_INVALID)
            kind = HubArgumentsError if refused else HubProtocolError
            future.set_exception(kind(f"{self.url} answered: {record.error[:300]}"))
        else:
            future.set_result(record.result)

    def _fail_waiting(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(HubUnreachableError(f"The connection to {self.url} ended."))

    async def _write(self, record: protocol.Record) -> None:
        if self._socket is None or self._socket.closed:
            raise HubUnreachableError(f"The connection to {self.url} is closed.")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await self._socket.send_str(protocol.encode(record))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(self.url, error) from error

    async def _receive_text(self) -> str | None:
        assert self._socket is not None
        message = await self._socket.receive()
        match message.type:
            case aiohttp.WSMsgType.TEXT:
                return str(message.data)
            case aiohttp.WSMsgType.BINARY:
                raise HubProtocolError(f"{self.url} sent a binary frame; the hub speaks text.")
            case aiohttp.WSMsgType.ERROR:
                raise HubUnreachableError(f"The connection to {self.url} broke: {message.data}.")
            case _:
                return None

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(protocol.PING_INTERVAL_SECONDS)
            try:
                await self._write(protocol.Ping())
            except HubUnreachableError:
                return  # the reader sees the same end and reports it


def _translated(url: str, error: BaseException) -> HubUnreachableError | HubCertificateError | HubProtocolError:
    match error:
        case aiohttp.ServerFingerprintMismatch():
            return HubCertificateError(
                f"The certificate of {url} is not the pinned one (its SHA-256 is {error.got.hex()}). "
                "If the portal's certificate was replaced on purpose, enrol with the new fingerprint."
            )
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            reason = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
            text = getattr(reason, "verify_message", "") or getattr(reason, "reason", "") or str(reason)
            return HubCertificateError(
                f"The certificate of {url} is not trusted: {text}. "
                "Use the portal's fingerprint (--fingerprint) or its authority (--ca-file)."
            )
        case aiohttp.WSServerHandshakeError() if error.status >= 500:
            return HubUnreachableError(f"{url} answered {error.status}; the portal has a fault, try again later.")
        case aiohttp.WSServerHandshakeError():
            return HubProtocolError(f"{url} refused the hub connection with status {error.status}.")
        case TimeoutError():
            return HubUnreachableError(f"{url} did not answer in {CONNECT_TIMEOUT_SECONDS:.0f} s.")
        case aiohttp.ClientConnectorError():
            return HubUnreachableError(
                f"{url} cannot be reached: {_reason(error.os_error)}. "
                "Check the address and the network; the portal may not run."
            )
        case _:
            return HubUnreachableError(f"The connection to {url} failed: {str(error) or type(error).__name__}.")


def _reason(error: OSError) -> str:
    # asyncio's own text is "Connect call failed" whatever the reason. A resolver's error numbers are below 0.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
