"""A portal that takes agents of the original product."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from portal.settings import Settings
from portal.testing import PortalClient, RunningPortal


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningPortal]:
    async with RunningPortal(Settings(data=tmp_path / "portal")) as running:
        yield running


@pytest.fixture
async def owner(running: RunningPortal) -> AsyncIterator[PortalClient]:
    async with running.owner() as client:
        await client.done("PATCH", "/api/organization", {"allow_original_agents": True})
        yield client
