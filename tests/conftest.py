"""Fixtures for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Fail the test when the agent blocks the event loop.

    For a whole module: `pytestmark = pytest.mark.usefixtures("no_blocking_calls")`.
    """
    with blockbuster_ctx("agent") as blockbuster:
        yield blockbuster
