"""The built-in service `logger`: every line of every service, on the node's own log and in the portal's console."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

from agent.logs import LineWriter, clip
from agent.orchestrator.model import Level, LogRecord


class Logger:
    """Takes log records from the orchestrator, and `debug`, `warning` and `error` actions from services.

    Args:
        writer: the terminal or journal.
        console: shows a line in the portal while the node's console is on; must not block.
        wall: the clock.
    """

    id: ClassVar[str] = "logger"
    actions: ClassVar[frozenset[str]] = frozenset({"debug", "warning", "error"})

    def __init__(
        self, writer: LineWriter, *, console: Callable[[str, dict[str, Any]], None], wall: Callable[[], float]
    ) -> None:
        self._writer = writer
        self._console = console
        self._wall = wall

    def log(self, record: LogRecord) -> None:
        """Show one record. On the loop only; never raises for content."""
        self._writer.write(record.level, record.service, record.text, record.wall)
        self._console(
            clip(record.text), {"service": record.service, "level": record.level, "time": round(record.wall, 3)}
        )

    async def handle(self, source: str, action: str, payload: Any) -> None:
        """`SubmitAction("logger", "debug", text)`: what Debug, Warning and ThrowError do by themselves."""
        self.log(LogRecord(service=source, level=cast(Level, action), text=str(payload), wall=self._wall()))
