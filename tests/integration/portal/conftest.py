"""A portal behind a real server, with time in the test's hands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from portal.settings import Settings
from portal.testing import FakeClock, PortalClient, RunningPortal


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    with blockbuster_ctx("portal") as blockbuster:
        for function in blockbuster.functions.values():
            # Migrations run in a thread and a loop of their own.
            function.can_block_in("portal/migrations/__init__.py", {"_migrate", "_upgrade"})
            function.can_block_in("portal/testing.py", {"__aenter__"})
        yield


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def running(tmp_path: Path, clock: FakeClock) -> AsyncIterator[RunningPortal]:
    async with RunningPortal(Settings(data=tmp_path / "portal"), clock=clock) as running:
        yield running


@pytest.fixture
async def owner(running: RunningPortal) -> AsyncIterator[PortalClient]:
    async with running.owner() as client:
        yield client
