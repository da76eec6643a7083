"""Tell systemd how the process is: `Type=notify` and `WatchdogSec=`, without a library."""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send `state` to the supervisor that started this process; do nothing when there is none.

    `state` is one or several assignments, a line each: `READY=1`, `STATUS=connected to hub.example`, `WATCHDOG=1`,
    `STOPPING=1`. From any thread; never blocks and never raises: a supervisor that cannot be reached notices by
    itself, and the next notification may reach it.

    Example: `notify("READY=1\\nSTATUS=3 services running")`
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        # Linux's abstract namespace: such a socket has no file, and its name starts with a zero byte.
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto(state.encode(), address)
    except OSError as error:
        _log.warning("systemd was not told %r: %s", state, error, extra={"action": "notify_failed"})


def watchdog_interval_seconds() -> float | None:
    """How often to send `WATCHDOG=1`, in seconds: half of what systemd allows; None when no one watches this process.

    Raises ValueError when `WATCHDOG_USEC` or `WATCHDOG_PID` is not a number.
    """
    allowed = os.environ.get("WATCHDOG_USEC")
    # The variables are inherited: they may be meant for a parent.
    if not allowed or int(os.environ.get("WATCHDOG_PID", os.getpid())) != os.getpid():
        return None
    return int(allowed) / 2_000_000
