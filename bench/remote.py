"""Services that do what a benchmark says: scripts with a line to the benchmark's process, beside the node's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

CONNECT_SECONDS = 60.0

_PREFIX = """
import asyncio
import json
import time

from base_service import CustomService


class Remote(CustomService):
    async def Start(self):
        self.printf("remote")
        reader, writer = await asyncio.open_unix_connection(self.GetPropertyValue("static", "remote"))
        writer.write(json.dumps(type(self).__name__).encode() + b"\\n")
        async for line in reader:
            name, arguments = json.loads(line)
            try:
                result = await getattr(self, name)(**arguments)
            except Exception as error:
                result = {"error": repr(error)}
            writer.write(json.dumps(result).encode() + b"\\n")
"""


def script(source: str) -> str:
    """A service's script: `source` has a class that inherits `Remote`; its coroutine methods can be called."""
    return f"{_PREFIX}\n\n{source}"


class Remotes:
    """The services that have connected, by class name."""

    def __init__(self) -> None:
        self._links: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._arrived = asyncio.Condition()

    async def connected(self, *names: str) -> None:
        """Wait for these services."""
        async with asyncio.timeout(CONNECT_SECONDS), self._arrived:
            await self._arrived.wait_for(lambda: all(name in self._links for name in names))

    async def call(self, service: str, method: str, **arguments: Any) -> Any:
        """Have a service's method run, and return what it returns. Raises RuntimeError for what it raised."""
        reader, writer = self._links[service]
        writer.write(json.dumps([method, arguments]).encode() + b"\n")
        result = json.loads(await reader.readline())
        if isinstance(result, dict) and "error" in result:
            raise RuntimeError(f"{service}.{method}: {result['error']}")
        return result

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a service in."""
        name = json.loads(await reader.readline())
        async with self._arrived:
            self._links[name] = (reader, writer)
            self._arrived.notify_all()


@asynccontextmanager
async def remotes(path: Path) -> AsyncIterator[Remotes]:
    """Listen on `path`, which the services get as their static property `remote`."""
    found = Remotes()
    path.parent.mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_unix_server(found.accept, path, limit=2**24)
    try:
        yield found
    finally:
        server.close()
