from pathlib import Path

import pytest

from agent.errors import AlreadyRunningError, StorageError
from agent.instance import InstanceLock


def test_second_agent_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    with (
        InstanceLock(tmp_path / "agent.lock"),
        pytest.raises(AlreadyRunningError, match="--state-dir"),
        InstanceLock(tmp_path / "agent.lock"),
    ):
        pass
    with InstanceLock(tmp_path / "agent.lock"):
        pass


def test_state_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StorageError, match="state"), InstanceLock(tmp_path / "state" / "agent.lock"):
        pass
