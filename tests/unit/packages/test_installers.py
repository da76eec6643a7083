"""How uv and pip are started, followed and understood."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from agent.runtime import installers
from agent.runtime.installers import Job, Outcome, Pip, Uv, find_installer, reason, run
from agent.runtime.packages import PackageInstallError
from agent.runtime.pip_settings import PipSettings


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        requirements=tmp_path / "requirements.txt",
        constraints=tmp_path / "constraints.txt",
        target=tmp_path / "packages",
        scratch=tmp_path / "tmp",
        cache=tmp_path / ".cache",
        python=sys.executable,
        offline=False,
    )


UV_TEXTS = [
    (
        [
            "Using CPython 3.11.7 interpreter at: /usr/bin/python",
            "error: No solution found when resolving dependencies",
            "  cause: Because nope was not found in the package registry and you require nope, we can conclude that "
            "your requirements are unsatisfiable.",
            "",
            "hint: Packages were unavailable because the network was disabled.",
        ],
        "Because nope was not found in the package registry and you require nope, we can conclude that "
        "your requirements are unsatisfiable",
    ),
    (
        [
            "  × No solution found when resolving dependencies:",
            "  ╰─▶ Because only a<=1 is available and you require",
            "      a>=2, we can conclude that your requirements are unsatisfiable.",
        ],
        "Because only a<=1 is available and you require a>=2, we can conclude that your requirements are unsatisfiable",
    ),
    (
        [
            "error: Failed to download `a @ https://127.0.0.1:9/a-1-py3-none-any.whl`",
            "  cause: Request failed after 3 retries in 5.9s",
            "  cause: Connection refused (os error 111)",
        ],
        "Failed to download `a @ https://127.0.0.1:9/a-1-py3-none-any.whl`: Connection refused (os error 111)",
    ),
]
PIP_TEXTS = [
    (
        [
            "Looking in links: /opt/wheels",
            "ERROR: Could not find a version that satisfies the requirement nope (from versions: none)",
            "ERROR: No matching distribution found for nope",
        ],
        "Could not find a version that satisfies the requirement nope (from versions: none)",
    ),
    (
        [
            "ERROR: Cannot install a<1 and a>2 because these package versions have conflicting dependencies.",
            "The conflict is caused by:",
            "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/",
        ],
        "Cannot install a<1 and a>2 because these package versions have conflicting dependencies",
    ),
    (["/usr/bin/python3: No module named pip"], "/usr/bin/python3: No module named pip"),
    (["something else went wrong"], "something else went wrong"),
    ([], "it said nothing"),
]


@pytest.mark.parametrize(("tail", "sentence"), UV_TEXTS + PIP_TEXTS)
def test_the_installers_own_reason_is_given_in_one_line(tail: list[str], sentence: str) -> None:
    assert reason(Outcome(status=1, tail=tail)) == sentence


def test_an_installer_that_was_killed_is_said_to_have_been() -> None:
    assert reason(Outcome(status=-9, tail=["Downloading a"])) == "the installer was ended by SIGKILL"


def test_a_conflict_is_told_from_other_failures() -> None:
    assert Outcome(status=1, tail=PIP_TEXTS[1][0]).conflict
    assert Outcome(status=1, tail=UV_TEXTS[0][0]).conflict
    assert not Outcome(status=1, tail=UV_TEXTS[2][0]).conflict


def test_requirements_are_never_arguments(job: Job) -> None:
    settings = PipSettings({"PIP_INDEX_URL": "https://me:s3cret@example.org/simple"}, [])

    for installer in (Uv("/usr/bin/uv", settings), Pip(settings)):
        command = installer.command(job)
        assert str(job.requirements) in command
        assert str(job.constraints) in command
        assert str(job.target) in command
        assert "s3cret" not in " ".join(command)


def test_the_caches_are_the_nodes_unless_the_board_has_its_own(job: Job) -> None:
    nothing = PipSettings({}, [])
    own = PipSettings({"PIP_CACHE_DIR": "/var/cache/pip"}, [])

    assert Uv("uv", nothing).environment(job, {})["UV_CACHE_DIR"] == str(job.cache / "uv")
    assert Uv("uv", nothing).environment(job, {"UV_CACHE_DIR": "/x"})["UV_CACHE_DIR"] == "/x"
    assert Pip(nothing).environment(job, {})["PIP_CACHE_DIR"] == str(job.cache / "pip")
    assert "PIP_CACHE_DIR" not in Pip(own).environment(job, {})


def test_pip_is_used_where_there_is_no_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installers, "_find_uv", lambda: None)
    nothing = PipSettings({}, [])

    assert find_installer("auto", nothing).name == "pip"
    monkeypatch.setattr(installers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PackageInstallError, match="Neither uv nor pip is installed on this node"):
        find_installer("auto", nothing)


def test_the_uv_of_the_nodes_own_environment_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert find_installer("auto", PipSettings({}, [])).name == "uv"


def test_the_end_of_the_output_is_kept_without_credentials() -> None:
    script = "for i in range(500): print('line', i, 'https://me:s3cret@example.org')"

    outcome = run([sys.executable, "-c", script], os.environ, timeout_seconds=30, on_wait=print)

    assert (outcome.status, outcome.timed_out) == (0, False)
    assert outcome.tail[-1] == "line 499 https://***@example.org"
    assert len(outcome.tail) == installers.TAIL_LINES


def test_an_installer_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {note}; echo waiting; wait"

    outcome = run(["sh", "-c", script], os.environ, timeout_seconds=2, on_wait=print)

    assert outcome.timed_out
    assert outcome.tail == ["waiting"]
    status = Path(f"/proc/{note.read_text().strip()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_a_long_install_says_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installers, "PROGRESS_SECONDS", 0.05)
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    said: list[str] = []

    def hear(line: str) -> None:
        if line and not said:
            said.append(line)
            go_on.write_text("now\n")

    outcome = run(
        ["sh", "-c", f"echo Downloading a; read line < {go_on}"], os.environ, timeout_seconds=60, on_wait=hear
    )

    assert (outcome.status, said) == (0, ["Downloading a"])
