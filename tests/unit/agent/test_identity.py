from pathlib import Path
from typing import NoReturn

import pytest

from agent.errors import StorageError
from agent.identity import IdentityReservation, load_identity
from agent.paths import Paths


@pytest.fixture
def paths_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """As a folder of mode 0700 looks to any other user; root, who may run the tests, would not be refused."""

    def refuse(*_: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    for name in ("exists", "read_bytes"):
        monkeypatch.setattr(Path, name, refuse)
    return Paths(state=tmp_path, runtime=tmp_path)


def test_another_users_identity_is_refused_with_what_to_do(paths_of_another_user: Paths) -> None:
    with pytest.raises(StorageError, match="run this as the user who enrolled the node"):
        load_identity(paths_of_another_user)


def test_enrolment_into_another_users_directory_is_refused_with_what_to_do(paths_of_another_user: Paths) -> None:
    with (
        pytest.raises(StorageError, match="or give another with --state-dir"),
        IdentityReservation(paths_of_another_user),
    ):
        pass


def test_identity_that_cannot_be_read_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("torn", "utf-8")
    with pytest.raises(StorageError, match="enrol anew"):
        load_identity(Paths(state=tmp_path, runtime=tmp_path))
    assert (tmp_path / "identity.json").read_text("utf-8") == "torn"
