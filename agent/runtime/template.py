"""The template process: a small, preloaded interpreter that services are forked from.

Started as `python -P -m agent.runtime.template CONTROL LIFELINE`, both file descriptors. It has one thread and no event
loop when it forks, so that a fork of it is sound; what it has imported, every service shares.

CONTROL is a SOCK_SEQPACKET socket, one msgpack record a packet:

    agent → template    number of the child                  with the child's socket and the write end of its output
    template → agent    [number, pid]                        with the child's pidfd: forked
    template → agent    [number, pid, wait status]           ended and reaped

LIFELINE is the read end of a pipe whose write end only the agent has. When the agent is gone the children save what
they must and end by themselves; those that have not after `ORPHAN_SECONDS` are killed, then the template ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

import msgspec

from agent.runtime import child, rehearsal

ORPHAN_SECONDS = 7.0
"""How long children may outlive the agent: a little more than their own lifeline gives them."""

_encode = msgspec.msgpack.encode
_decode_number = msgspec.msgpack.Decoder(int).decode


class Template:
    """The template's single thread. Never returns from `run`."""

    def __init__(self, control: socket.socket, lifeline: int) -> None:
        self._control = control
        self._lifeline = lifeline
        self._poll = select.poll()
        self._children: dict[int, tuple[int, int]] = {}
        """pidfd → number, pid."""

    def run(self) -> NoReturn:
        """Fork and reap until the agent is gone, then see the children off."""
        self._poll.register(self._control.fileno(), select.POLLIN)
        deadline: float | None = None
        while True:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            events = self._poll.poll(wait)
            for descriptor, _ in events:
                if descriptor != self._control.fileno():
                    self._reap(descriptor)
                elif not self._take_request():
                    self._poll.unregister(self._control.fileno())
                    deadline = time.monotonic() + ORPHAN_SECONDS
            if deadline is not None and (not self._children or time.monotonic() >= deadline):
                for _, pid in self._children.values():
                    _kill_session(pid)
                os._exit(0)

    def _take_request(self) -> bool:
        """Fork the child that the agent asks for. False when the agent is gone."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, 64, 2)
        except ConnectionError:
            return False
        if not packet:
            return False
        number = _decode_number(packet)
        link, output = descriptors
        pid = os.fork()
        if pid == 0:
            self._become_child(link, output)
        os.close(link)
        os.close(output)
        # The child is not reaped before its descriptor exists, so the number cannot be anybody else's.
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (number, pid)
        self._poll.register(pidfd, select.POLLIN)
        with contextlib.suppress(ConnectionError):
            socket.send_fds(self._control, [_encode((number, pid))], [pidfd])
        return True

    def _become_child(self, link: int, output: int) -> NoReturn:
        status = 70
        try:
            self._control.close()
            for pidfd in self._children:
                os.close(pidfd)
            status = child.main(socket.socket(fileno=link), output, self._lifeline)
        finally:
            # Never back into the template's own frames, whatever happened.
            os._exit(status)

    def _reap(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        number, pid = self._children.pop(pidfd)
        # The leader is a zombie yet, so the session's number is still its own: whatever it started goes with it.
        _kill_session(pid)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        with contextlib.suppress(ConnectionError):
            self._control.send(_encode((number, pid, status)))


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def main() -> NoReturn:
    """Take the two descriptors from the command line and serve."""
    control, lifeline = (int(argument) for argument in sys.argv[1:3])
    # Ends with the agent and not before: a terminal's Ctrl-C or a SIGTERM to the group is the agent's to handle.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(control, False)
    os.set_inheritable(lifeline, False)
    child.preload()
    rehearsal.rehearse()
    # Collected once and frozen: the garbage collector of a child never touches, and so never copies, these pages.
    gc.collect()
    gc.freeze()
    Template(socket.socket(fileno=control), lifeline).run()


if __name__ == "__main__":
    main()
