"""Each benchmark runs, with sizes so small that its figures mean nothing; nobody checks them here."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["services", "submit", "memory", "idle", "start"])
def test_benchmark_runs_and_prints_its_table(name: str) -> None:
    # In the system's folder for temporary files: a longer path would be too long for the sockets.
    finished = subprocess.run(
        [sys.executable, "-m", "bench", name, "--quick"], capture_output=True, text=True, timeout=100, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert f"### {name}: " in finished.stdout
