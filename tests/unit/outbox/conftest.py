"""What the outbox's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.outbox.limits import Limits
from agent.outbox.store import Outbox


class HandClock:
    """A clock that a test sets by hand."""

    def __init__(self) -> None:
        self.wall_seconds = 1_800_000_000.0
        self.monotonic_seconds = 100.0
        self.boot = "boot-1"

    def wall(self) -> float:
        return self.wall_seconds

    def monotonic(self) -> float:
        return self.monotonic_seconds

    def boot_id(self) -> str:
        return self.boot

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("the outbox does not sleep")

    def advance(self, seconds: float) -> None:
        self.wall_seconds += seconds
        self.monotonic_seconds += seconds

    def reboot(self) -> None:
        self.boot = f"boot-{int(self.boot.removeprefix('boot-')) + 1}"
        self.monotonic_seconds = 1.0


OpenOutbox = Callable[..., Awaitable[Outbox]]


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
async def open_outbox(path: Path, clock: HandClock) -> AsyncIterator[OpenOutbox]:
    """Opens the outbox at `path` as often as wanted; all are closed at the end."""
    opened: list[Outbox] = []

    async def opener(*, at: Path | None = path, limits: Limits | None = None, real_clock: bool = False) -> Outbox:
        outbox = await Outbox.open(
            at, node="greenhouse", clock=SystemClock() if real_clock else clock, limits=limits, check_seconds=5.0
        )
        opened.append(outbox)
        return outbox

    yield opener
    for outbox in opened:
        await outbox.close()
