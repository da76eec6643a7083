"""The command as a person meets it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OUTSTATION = [sys.executable, "-m", "agent.cli"]


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*OUTSTATION, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=30,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('[sinks.mqtt]\nhost = "b"\ntopic = "a/{nope}"\n', "sinks.mqtt.topic has {nope}"),
        ('[sinks.azure]\nconnection_string_file = "FILE"\n', "no SharedAccessKey"),
    ],
)
@pytest.mark.parametrize("command", ["check-config", "run"])
def test_sink_that_cannot_run_is_told_before_anything_starts(
    tmp_path: Path, command: str, config: str, words: str
) -> None:
    (tmp_path / "connection").write_text("HostName=hub.example;DeviceId=pi", "utf-8")
    (tmp_path / "agent.toml").write_text(config.replace("FILE", str(tmp_path / "connection")), "utf-8")
    (tmp_path / "identity.json").write_text(
        '{"portal_url": "", "node_id": "1", "node_name": "pi", "organization_id": "o", "private_key": "",'
        ' "manifest_key": ""}',
        "utf-8",
    )
    done = run(command, "--config", tmp_path / "agent.toml", "--state-dir", tmp_path, "--gpio", "real")
    assert done.returncode == 78
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_terminal_without_our_symbols_is_no_reason_to_fail(tmp_path: Path) -> None:
    done = run("status", "--state-dir", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 26
    assert done.stdout.startswith("? not enrolled")


def test_reader_that_goes_away_is_no_reason_for_a_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*OUTSTATION, "status", "--state-dir", str(tmp_path)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
