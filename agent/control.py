"""The running agent's local door: `outstation status` asks here.

A Unix socket that only the agent's own user (and root) may open; a request is one line of JSON, and so is its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import OutstationError, StorageError

REQUEST_LIMIT_BYTES = 64 * 1024
TIMEOUT_SECONDS = 5.0

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class NotRunningError(OutstationError):
    """No agent answers on the control socket."""

    code = "not_running"


@asynccontextmanager
async def serve_control(path: Path, handlers: dict[str, Handler]) -> AsyncIterator[None]:
    """Answer requests `{"command": NAME, …}` on `path` while the context is open.

    Raises StorageError when the socket cannot be made.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                line = await reader.readline()
                writer.write(msgspec.json.encode(await _handle(line, handlers)) + b"\n")
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            pass  # whoever asked is gone, or never asked
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    try:
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(answer, path, limit=REQUEST_LIMIT_BYTES)
        path.chmod(0o600)
    except OSError as error:
        raise StorageError(
            f"The control socket {path} cannot be made: {error}; give another place, with a shorter path perhaps, "
            "with --runtime-dir."
        ) from error
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


async def _handle(line: bytes, handlers: dict[str, Handler]) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(line, type=dict[str, Any])
        handler = handlers[request.pop("command")]
    except (msgspec.MsgspecError, KeyError) as error:
        return {"error": f"This is not a request of the control socket: {error}."}
    return await handler(request)


def ask(path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Ask the running agent. Blocking. Raises NotRunningError when none answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        try:
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode({"command": command, **arguments}) + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
            return msgspec.json.decode(line, type=dict[str, Any])
        except PermissionError as error:
            raise NotRunningError(
                f"{path} belongs to another user; run this command as root or as that user."
            ) from error
        except (OSError, msgspec.MsgspecError) as error:
            raise NotRunningError(f"No agent answers on {path}: {error}.") from error
