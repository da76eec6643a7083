"""What can be done with the console."""

from __future__ import annotations

import re
from collections import deque
from datetime import datetime
from heapq import merge
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from portal.bus import console_topic
from portal.console.views import ConsoleLine, Level
from portal.nodes.views import NodeChange
from portal.work import Work

if TYPE_CHECKING:
    from portal.bus import Bus

LINES_PER_NODE = 500
NODES_LIMIT = 1000
"""So many nodes' lines are kept: those of the nodes that wrote last."""
TEXT_LIMIT = 8192
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_RED = re.compile(r"\x1b\[(?:\d+;)*(?:31|91)m")
_YELLOW = re.compile(r"\x1b\[(?:\d+;)*(?:33|93)m")


class ConsoleBook:
    """The last lines of each node, in memory only. On the loop only."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lines: dict[tuple[str, str], deque[ConsoleLine]] = {}
        self._last_id = 0

    def append(
        self, *, organization_id: str, node_id: str, node: str, service: str, level: Level, text: str, time: datetime
    ) -> ConsoleLine:
        """Keep a line and tell who watches."""
        self._last_id += 1
        line = ConsoleLine(
            id=self._last_id,
            node_id=node_id,
            node=node,
            service=service,
            level=level,
            text=text[:TEXT_LIMIT],
            time=time,
        )
        # The node that wrote last stands last.
        lines = self._lines.pop((organization_id, node_id), None) or deque(maxlen=LINES_PER_NODE)
        lines.append(line)
        self._lines[organization_id, node_id] = lines
        if len(self._lines) > NODES_LIMIT:
            del self._lines[next(iter(self._lines))]
        self._bus.publish(console_topic(organization_id), line.model_dump(mode="json"))
        return line

    def recent(self, organization_id: str, *, node: str, limit: int, after: int) -> list[ConsoleLine]:
        """The last lines, oldest first; `node` is an id or the name that a node has now."""
        name = node.casefold()
        books = (
            reversed(lines)
            for (organization, node_id), lines in self._lines.items()
            if organization == organization_id and (not node or node_id == node or lines[-1].node.casefold() == name)
        )
        newest_first = merge(*books, key=lambda line: -line.id)
        found = list(islice(takewhile(lambda line: line.id > after, newest_first), limit))
        found.reverse()
        return found

    def forget(self, node_id: str) -> None:
        """Drop a deleted node's lines."""
        for key in [key for key in self._lines if key[1] == node_id]:
            del self._lines[key]


class ConsoleService:
    """Console lines of the caller's organisation. New lines come over the bus: `console_topic(organization_id)`."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def recent(self, *, node: str = "", limit: int = 500, after: int = 0) -> list[ConsoleLine]:
        """The last lines, oldest first; `node` is an id or a name, `after` a line's id."""
        return self._work.portal.console_book.recent(self._work.organization_id, node=node, limit=limit, after=after)

    async def switch(self, node_id: str, *, on: bool) -> None:
        """Switch a node's console on for 30 minutes, or off. Raises NotFoundError."""
        await self._work.nodes.change(node_id, NodeChange(console=on))


def plain_text(text: str) -> tuple[str, Level]:
    """A line of an original agent without its colour codes, and what its colour says."""
    level: Level = "error" if _RED.search(text) else "warning" if _YELLOW.search(text) else "info"
    return _ANSI.sub("", text), level
