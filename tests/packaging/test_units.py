"""The unit files as systemd reads them, without starting anything."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
SERVICES = ("outstation-agent.service", "outstation-portal.service")
UNITS = (*SERVICES, "outstation-agent.path")
# systemd-analyze's own scale, in tenths: 0 is sealed, 100 is open. An unhardened service has 96.
EXPOSURE_LIMIT = {"outstation-agent.service": 20, "outstation-portal.service": 16}

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path):
    """The units, with the command that this environment has in place of /opt/outstation."""
    command = Path(sys.executable).with_name("outstation")
    for name in UNITS:
        text = (SYSTEMD / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace("/opt/outstation/bin/outstation", str(command)), "utf-8")
    return tmp_path


def keys(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / name).read_text("utf-8").splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_to_say_about_the_unit(units, name):
    result = subprocess.run(["systemd-analyze", "verify", units / name], capture_output=True, text=True)

    # An unknown key is a line on stderr and status 0.
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_the_service_stays_below_its_exposure_limit(units, name):
    limit = EXPOSURE_LIMIT[name]

    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--json=short", f"--threshold={limit}", units / name],
        capture_output=True,
        text=True,
    )

    weak = [row["description"] for row in json.loads(result.stdout) if not row.get("set")]
    assert result.returncode == 0, weak


@pytest.mark.parametrize("name", SERVICES)
def test_the_service_runs_as_a_user_of_its_own_and_is_watched(name):
    unit = keys(name)

    assert unit["Type"] == ["notify"]
    assert unit["Restart"] == ["on-failure"]
    assert unit["User"] == [unit["StateDirectory"][0]]
    assert re.fullmatch(r"\d+s", unit["WatchdogSec"][0])


def test_each_user_is_made_by_the_sysusers_file():
    lines = [line.split() for line in (SYSTEMD / "outstation.sysusers").read_text("utf-8").splitlines()]
    made = {words[1] for words in lines if words and words[0] == "u"}

    assert made == {keys(name)["User"][0] for name in SERVICES}


def test_the_agent_is_not_started_again_on_a_status_that_starting_again_cannot_change():
    from agent.exitcodes import ExitCode

    statuses = {int(status) for status in keys("outstation-agent.service")["RestartPreventExitStatus"][0].split()}

    assert statuses == {ExitCode.NOT_ENROLLED, ExitCode.MISSING_EXTRA, ExitCode.CONFIG_INVALID}


@needs_systemd
def test_the_sysusers_file_is_accepted_on_an_empty_machine(tmp_path):
    (tmp_path / "etc").mkdir()

    result = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "outstation.sysusers"],
        capture_output=True,
        text=True,
    )

    assert result.returncode == 0, result.stderr
    groups = (tmp_path / "etc" / "group").read_text("utf-8")
    assert re.search(r"^gpio:x:\d+:outstation$", groups, re.MULTILINE)
    assert re.search(r"^outstation-portal:", (tmp_path / "etc" / "passwd").read_text("utf-8"), re.MULTILINE)
