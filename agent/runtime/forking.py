"""The agent's side of the template process: asks it for children and hears of their ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field

import msgspec

log = logging.getLogger(__name__)

FORK_TIMEOUT_SECONDS = 10.0
FORKS_AT_ONCE = 16
"""Requests that the template has at once; its socket takes some two hundred, and each has its time limit."""
_HIDDEN_PREFIXES = ("OUTSTATION_", "WATCHDOG_")
_HIDDEN = frozenset(("NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"))

_decode_report = msgspec.msgpack.Decoder(tuple[int, ...]).decode


class TemplateError(OSError):
    """The template process cannot be started or does not answer."""


@dataclass(eq=False)
class ForkedProcess:
    """A child of the template, with the agent's ends of what connects them.

    `exited` gives the wait status, or None when only the end is known and not how.
    """

    pid: int
    pidfd: int
    link: socket.socket
    output: int
    """The read end of its standard output and error."""
    exited: asyncio.Future[int | None] = field(repr=False)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended. Never reaches a process that took its number."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)


class TemplateProcess:
    """Starts the template when it is first needed, and again should it ever die. On the loop only.

    A template that dies takes nobody with it: its children run on, and the agent hears of their ends by their pidfds.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._starting = asyncio.Lock()
        self._room = asyncio.Semaphore(FORKS_AT_ONCE)
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._last = 0
        self._forking: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._children: dict[int, ForkedProcess] = {}

    @property
    def pid(self) -> int | None:
        """The running template's process id."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the template if it does not run. Raises TemplateError."""
        async with self._starting:
            if self._control is None:
                await self._start()

    async def fork(self) -> ForkedProcess:
        """Fork a child. Raises TemplateError when the template does not do it."""
        async with self._room:
            await self.start()
            try:
                ours, theirs = socket.socketpair()
            except OSError as error:
                raise TemplateError(f"There is no socket for another process: {error}.") from error
            try:
                read, write = os.pipe()
            except OSError as error:
                ours.close()
                theirs.close()
                raise TemplateError(f"There is no pipe for another process: {error}.") from error
            return await self._fork(ours, theirs, read, write)

    async def _fork(self, ours: socket.socket, theirs: socket.socket, read: int, write: int) -> ForkedProcess:
        assert self._control is not None
        self._last += 1
        number = self._last
        answer: asyncio.Future[tuple[int, int]] = self._loop.create_future()
        self._forking[number] = answer
        try:
            socket.send_fds(self._control, [msgspec.msgpack.encode(number)], [theirs.fileno(), write])
            async with asyncio.timeout(FORK_TIMEOUT_SECONDS):
                pid, pidfd = await answer
        except OSError as error:
            ours.close()
            os.close(read)
            if isinstance(error, TimeoutError) and self._process is not None:
                self._process.kill()
            raise TemplateError(f"The template process did not fork: {error}.") from error
        finally:
            del self._forking[number]
            theirs.close()
            os.close(write)
        ours.setblocking(False)
        os.set_blocking(read, False)
        forked = ForkedProcess(pid, pidfd, ours, read, self._loop.create_future())
        self._children[number] = forked
        forked.exited.add_done_callback(lambda _: self._forget(number))
        return forked

    async def close(self) -> None:
        """End the template; it kills what is left of its children. Returns when it has ended."""
        async with self._starting:
            process = self._process
            if self._control is None or process is None:
                return
            self._lose_control()
            if self._lifeline is not None:
                os.close(self._lifeline)
                self._lifeline = None
            await asyncio.to_thread(process.wait)
            self._process = None

    # --- Inside ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        if self._lifeline is None:
            lifeline, self._lifeline = os.pipe()
        else:
            lifeline = os.open(f"/proc/self/fd/{self._lifeline}", os.O_RDONLY)
        try:
            # Own session: what a terminal sends to the agent's group is the agent's to handle.
            self._process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-P", "-m", "agent.runtime.template", str(theirs.fileno()), str(lifeline)],
                stdin=subprocess.DEVNULL,
                # It may outlive the agent for a moment, and whoever reads the agent's output should not wait for that.
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), lifeline),
                start_new_session=True,
                env=service_environment(),
            )
        except OSError as error:
            ours.close()
            raise TemplateError(f"The template process cannot be started: {error}.") from error
        finally:
            theirs.close()
            os.close(lifeline)
        ours.setblocking(False)
        self._control = ours
        self._loop.add_reader(ours.fileno(), self._read_reports)

    def _read_reports(self) -> None:
        assert self._control is not None
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._control, 256, 1)
            except BlockingIOError:
                return
            except ConnectionError:
                packet, descriptors = b"", []
            if not packet:
                self._lost()
                return
            self._take_report(_decode_report(packet), descriptors)

    def _take_report(self, report: tuple[int, ...], descriptors: list[int]) -> None:
        number = report[0]
        if descriptors:
            answer = self._forking.get(number)
            if answer is not None and not answer.done():
                answer.set_result((report[1], descriptors[0]))
            else:
                os.close(descriptors[0])
            return
        child = self._children.get(number)
        if child is not None and not child.exited.done():
            child.exited.set_result(report[2])

    def _lost(self) -> None:
        log.error("The template process has ended; it is started again with the next service.")
        self._lose_control()
        for answer in self._forking.values():
            if not answer.done():
                answer.set_exception(ConnectionError("it has ended"))
        for child in self._children.values():
            self._loop.add_reader(child.pidfd, self._ended_unseen, child)

    def _ended_unseen(self, child: ForkedProcess) -> None:
        self._loop.remove_reader(child.pidfd)
        if not child.exited.done():
            child.exited.set_result(None)

    def _lose_control(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    def _forget(self, number: int) -> None:
        child = self._children.pop(number)
        self._loop.remove_reader(child.pidfd)
        os.close(child.pidfd)


def service_environment() -> dict[str, str]:
    """The agent's environment without what is the agent's alone."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _HIDDEN and not name.startswith(_HIDDEN_PREFIXES)
    }
