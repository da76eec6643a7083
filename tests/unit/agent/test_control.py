import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.control import NotRunningError, ask, serve_control
from agent.errors import StorageError


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"got": request}


async def test_request_reaches_its_handler_and_the_answer_comes_back(tmp_path: Path) -> None:
    async with serve_control(tmp_path / "agent.sock", {"echo": echo}):
        answer = await asyncio.to_thread(ask, tmp_path / "agent.sock", "echo", x=1)
    assert answer == {"got": {"x": 1}}


async def test_unknown_command_is_answered_and_not_dropped(tmp_path: Path) -> None:
    async with serve_control(tmp_path / "agent.sock", {"echo": echo}):
        answer = await asyncio.to_thread(ask, tmp_path / "agent.sock", "nonsense")
    assert "not a request of the control socket" in answer["error"]


async def test_only_the_owner_may_open_it(tmp_path: Path) -> None:
    async with serve_control(tmp_path / "agent.sock", {}):
        assert (tmp_path / "agent.sock").stat().st_mode & 0o777 == 0o600


async def test_socket_left_by_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.touch()
    async with serve_control(path, {"echo": echo}):
        assert await asyncio.to_thread(ask, path, "echo") == {"got": {}}
    assert not path.exists()


def test_asking_where_no_agent_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="No agent answers"):
        ask(tmp_path / "agent.sock", "status")


async def test_socket_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="--runtime-dir"):
        async with serve_control(tmp_path / ("x" * 120) / "agent.sock", {}):
            pass
