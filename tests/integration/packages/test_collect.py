"""Taking back the disk space of environments that nobody needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.runtime.collecting import collect_packages
from agent.runtime.packages import MARK, PackageInstaller

MakeWheel = Callable[..., Path]


@pytest.fixture
def installer(root: Path, said: list[str]) -> PackageInstaller:
    return PackageInstaller(root, log=said.append, installer="uv")


@pytest.fixture
def folders(installer: PackageInstaller, make_wheel: MakeWheel) -> list[Path]:
    """Three environments of about a megabyte each, the first one asked for longest ago."""
    found = []
    for age, name in enumerate(["one", "two", "three"]):
        make_wheel(name, "1.0", files={f"{name}.py": "#" * 1_000_000})
        folder = installer.ensure(f"{name}_py", [name])
        assert folder is not None
        os.utime(folder / MARK, (1000 + age, 1000 + age))
        found.append(folder)
    return found


def test_within_the_budget_nothing_goes(installer: PackageInstaller, folders: list[Path]) -> None:
    assert installer.collect(set(), 100_000_000) == []
    assert all(folder.exists() for folder in folders)


def test_the_cache_goes_first(installer: PackageInstaller, folders: list[Path], root: Path) -> None:
    assert installer.collect(set(), 3_500_000) == [root / ".cache"]


def test_then_the_environments_that_were_not_asked_for_for_the_longest_time(
    installer: PackageInstaller, folders: list[Path], root: Path
) -> None:
    assert installer.collect(set(), 1_500_000) == [root / ".cache", folders[0], folders[1]]
    assert [folder.exists() for folder in folders] == [False, False, True]
    assert list(root.glob(".deleted-*")) == []


def test_what_a_deployed_service_uses_stays_however_small_the_budget(
    installer: PackageInstaller, folders: list[Path], root: Path
) -> None:
    assert installer.collect({"two_py"}, 0) == [root / ".cache", folders[0], folders[2]]
    assert installer.ensure("two_py", ["two"]) == folders[1]


def test_what_a_running_process_has_activated_stays(installer: PackageInstaller, folders: list[Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from agent.runtime.packages import activate\n"
        f"activate(Path({str(folders[0])!r})); print('active', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"active\n"

    installer.collect(set(), 0)

    assert [folder.exists() for folder in folders] == [True, False, False]
    process.communicate()
    installer.collect(set(), 0)
    assert not folders[0].exists()


def test_leftovers_of_interrupted_installs_go_at_once(
    installer: PackageInstaller, folders: list[Path], root: Path
) -> None:
    leftovers = [root / f".staging-{folders[0].name}-abc", root / ".deleted-0123-45"]
    for leftover in leftovers:
        (leftover / "packages").mkdir(parents=True)

    assert installer.collect(set(), 100_000_000) == []
    assert not any(leftover.exists() for leftover in leftovers)


def test_a_node_without_packages_has_nothing_to_collect(root: Path) -> None:
    assert PackageInstaller(root, log=print).collect(set(), 0) == []


async def test_agents_own_way_deletes_in_another_process_and_says_what(
    installer: PackageInstaller, folders: list[Path], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await collect_packages(root, ["two_py"], budget_bytes=0)
    assert [folder.exists() for folder in folders] == [False, True, False]
    assert folders[0].name in caplog.text


async def test_agents_own_way_does_nothing_on_a_node_without_packages(tmp_path: Path) -> None:
    await collect_packages(tmp_path / "packages", [])
    assert not (tmp_path / "packages").exists()
