"""An outbox without a file, for tests."""

from __future__ import annotations

from agent.clock import Clock, SystemClock
from agent.outbox.limits import Limits
from agent.outbox.store import Outbox


async def open_memory_outbox(
    *, node: str = "test-node", clock: Clock | None = None, limits: Limits | None = None
) -> Outbox:
    """Open the real outbox on a database in memory: the same behaviour, gone when it is closed.

    Example:
        outbox = await open_memory_outbox()
        sink = MemorySink()
        task = asyncio.create_task(sink.run(outbox.feed(sink.name, sink.kinds)))
    """
    return await Outbox.open(None, node=node, clock=clock or SystemClock(), limits=limits)
