"""Being process 1 of a container, as far as a program that starts others has to be."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from typing import NoReturn

FORWARDED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
AFTERMATH_SECONDS = 8
"""How long others may go on when the agent was killed: services save what they have. With process 1 all of them end."""


def leave_process_one() -> None:
    """Go on in a child when this is process 1; do nothing otherwise.

    Process 1 inherits every process whose parent has ended, and those of services would stay as zombies. It stays
    behind to wait for them, passes signals on to the child, and ends with the child's exit status. To be called before
    there are threads.
    """
    if os.getpid() != 1:
        return
    # A signal that comes before there is somebody to pass it on to waits.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child:
        _stay_behind(child, before)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stay_behind(child: int, mask: Iterable[int]) -> NoReturn:
    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    status = _wait_for(child)
    if status > 128:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(status))
        signal.alarm(AFTERMATH_SECONDS)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
    os._exit(status)


def _wait_for(child: int) -> int:
    """The child's exit status, 128 and the number when it died of a signal; others are reaped meanwhile."""
    while True:
        ended, how = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(how)
            return code if code >= 0 else 128 - code
