"""Time, as the agent sees it: injected everywhere, so that tests own it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Where every module takes time from."""

    def wall(self) -> float:
        """Seconds since 1970 as the machine believes; may be wrong on a board without a real-time clock."""

    def monotonic(self) -> float:
        """Seconds since boot, time asleep left out (CLOCK_MONOTONIC); comparable across processes."""

    def boot_id(self) -> str:
        """The kernel's identifier of this boot."""

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""


class SystemClock:
    """The machine's own clocks."""

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since boot."""
        return time.monotonic()

    def boot_id(self) -> str:
        """The kernel's random identifier of this boot (`/proc/sys/kernel/random/boot_id`)."""
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(seconds)
