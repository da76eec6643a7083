"""Facts about the machine."""

import platform
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.system import facts


def test_all_facts_can_be_sent_to_a_portal(tmp_path: Path) -> None:
    taken = msgspec.to_builtins(facts.read_facts(tmp_path))

    assert taken["hostname"] == platform.node()
    assert taken["memory"]["totalBytes"] > taken["memory"]["availableBytes"] > 0
    assert 0 <= taken["disk"]["percent"] <= 100
    assert taken["uptimeSeconds"] > 0
    assert len(taken["bootId"]) == 36
    assert "127.0.0.1" not in taken["ipAddresses"]


def test_the_disk_of_a_folder_that_is_not_made_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    assert facts.disk(tmp_path / "not" / "yet").total_bytes == facts.disk(tmp_path).total_bytes


def test_psutil_is_not_imported_with_the_agent() -> None:
    check = "import sys, agent.system.facts; sys.exit('psutil' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_sandbox_without_netlink_has_no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("psutil.net_if_addrs", refuse)
    assert facts.ip_addresses() == facts.mac_addresses() == []
