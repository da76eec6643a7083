"""What a service prints: lines for the logger, the last ones kept to explain a crash."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

LINE_LIMIT = 16 * 1024
"""Characters of one line; a longer one comes in parts."""
TAIL_LINES = 40
"""How many last lines explain a crash."""


class OutputLines(asyncio.Protocol):
    """Cuts a process's output into lines.

    Args:
        line: called with each line, without its end.
    """

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._rest = b""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Take what was printed."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
        while len(self._rest) > LINE_LIMIT:
            self._take(self._rest[:LINE_LIMIT])
            self._rest = self._rest[LINE_LIMIT:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The process and all it started have closed their output."""
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        self.ended.set()

    def _take(self, line: bytes) -> None:
        text = line[:LINE_LIMIT].decode(errors="replace").rstrip("\r")
        self.tail.append(text)
        self._line(text)


class RateLimit:
    """Lets a burst through, then so many a second, and counts what it holds back.

    Args:
        per_second: the lasting rate.
        burst: what may come at once.
        monotonic: seconds from the injected clock.
    """

    def __init__(self, *, per_second: float, burst: int, monotonic: Callable[[], float]) -> None:
        self._rate = per_second
        self._burst = float(burst)
        self._monotonic = monotonic
        self._left = float(burst)
        self._at = monotonic()
        self._held_back = 0

    def allow(self) -> bool:
        """Whether one more may pass."""
        if self._left < 1:
            now = self._monotonic()
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now
            if self._left < 1:
                self._held_back += 1
                return False
        self._left -= 1
        return True

    def held_back(self) -> int:
        """How many did not pass since this was asked last."""
        count, self._held_back = self._held_back, 0
        return count
