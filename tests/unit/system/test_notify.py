"""agent.system.notify against sockets as systemd makes them."""

import logging
import os
import secrets
import socket

import pytest

from agent.system.notify import notify, watchdog_interval_seconds


@pytest.fixture
def supervisor():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        yield receiver


def test_state_arrives_at_the_socket_systemd_names(supervisor, tmp_path, monkeypatch):
    supervisor.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

    notify("READY=1\nSTATUS=two services running")

    assert supervisor.recv(1024) == b"READY=1\nSTATUS=two services running"


def test_state_arrives_at_an_abstract_socket(supervisor, monkeypatch):
    name = f"outstation-test-{secrets.token_hex(8)}"
    supervisor.bind("\0" + name)
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)

    notify("WATCHDOG=1")

    assert supervisor.recv(1024) == b"WATCHDOG=1"


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_happens_without_a_supervisor(value, monkeypatch, caplog):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)

    notify("READY=1")

    assert not caplog.records


def test_a_supervisor_that_is_gone_is_a_warning_and_no_more(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))

    with caplog.at_level(logging.WARNING):
        notify("READY=1")

    assert "systemd was not told 'READY=1'" in caplog.text


def test_a_full_socket_never_blocks(supervisor, tmp_path, monkeypatch, caplog):
    supervisor.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

    with caplog.at_level(logging.WARNING):
        for _ in range(5000):
            notify("WATCHDOG=1")
            if caplog.records:
                break

    assert "systemd was not told" in caplog.text


def test_watchdog_is_fed_at_half_of_what_systemd_allows(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

    assert watchdog_interval_seconds() == 15.0


def test_watchdog_of_a_parent_is_not_ours(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))

    assert watchdog_interval_seconds() is None


def test_watchdog_without_a_process_id_is_ours(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)

    assert watchdog_interval_seconds() == 2.0


def test_no_watchdog_without_systemd(monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)

    assert watchdog_interval_seconds() is None
