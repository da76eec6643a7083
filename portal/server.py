"""The HTTP server around the application."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from agent.errors import ConfigError
from agent.hub.protocol import RECORD_LIMIT_BYTES
from portal.app import portal_of_app
from portal.settings import Settings
from portal.tls import Certificate

STOP_SECONDS = 5
LAST_WORDS_SECONDS = 2
BACKLOG = 4096
"""A fleet that comes back after a restart connects all at once."""


class PortalServer(uvicorn.Server):
    """Ends event streams and nodes' connections first when it is told to stop, so that it stops within seconds."""

    def __init__(self, app: FastAPI, certificate: Certificate | None, *, on_ready: Callable[[], None]) -> None:
        self._portal = portal_of_app(app)
        self._on_ready = on_ready
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                ws="websockets-sansio",
                ws_max_size=2 * RECORD_LIMIT_BYTES,
                # Nodes and pages have heartbeats of their own; compression would cost each node a quarter megabyte.
                ws_ping_interval=None,
                ws_per_message_deflate=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=STOP_SECONDS,
                ssl_certfile=certificate.certificate if certificate else None,
                ssl_keyfile=certificate.key if certificate else None,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take SIGTERM or SIGINT; the process then ends with a status instead of by the signal."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        self._portal.begin_stop()
        # The server would cut the connections before their last record is out.
        await self._portal.hub.wait_closed(LAST_WORDS_SECONDS)
        await super().shutdown(sockets)


def listen(settings: Settings) -> socket.socket:
    """Take the port. Raises ConfigError when it cannot be had."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"The portal cannot listen on {settings.host}:{settings.port}: {error.strerror or error}. "
            "Choose another --port (PORTAL_PORT) or --host (PORTAL_HOST)."
        ) from error
    return taken


def port_of(taken: socket.socket) -> int:
    """The port of a bound socket."""
    address: tuple[Any, ...] = taken.getsockname()
    return int(address[1])
