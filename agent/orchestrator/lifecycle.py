"""The life of one service: processes that start, end and are started again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from agent.backoff import FullJitterBackoff
from agent.clock import Clock
from agent.orchestrator.model import ServiceSpec, ServiceStatus, State
from agent.runtime.forking import TemplateError
from agent.runtime.host import Ending, ServiceHost

FAILED_AFTER = 8
"""So many ends by itself within `FAILED_WITHIN_SECONDS`, and the service is left alone as `failed`."""
FAILED_WITHIN_SECONDS = 600.0
MOST_BACKOFF_SECONDS = 60.0
SETTLED_SECONDS = 60.0
"""A process that ran for so long has come up: the next back-off begins small again."""


class ServiceLife:
    """Keeps one service running until it is told to stop or the service has failed too often. On the loop only.

    Args:
        make_host: a host for a new process.
        on_state: called with a copy of the status at each change.
        on_gone: called when a process has ended, however it did.
        on_ended: called after that when it was not asked to, with the seconds until it is started again, or None.
    """

    def __init__(
        self,
        spec: ServiceSpec,
        *,
        clock: Clock,
        make_host: Callable[[ServiceSpec], ServiceHost],
        on_state: Callable[[ServiceStatus], None],
        on_gone: Callable[[ServiceSpec], None],
        on_ended: Callable[[ServiceSpec, Ending, float | None], None],
        backoff: FullJitterBackoff | None = None,
    ) -> None:
        self.spec = spec
        self.status = ServiceStatus(id=spec.id, version=spec.version, state="stopped", since_wall=clock.wall())
        self.host: ServiceHost | None = None
        self._clock = clock
        self._make_host = make_host
        self._on_state = on_state
        self._on_gone = on_gone
        self._on_ended = on_ended
        self._backoff = backoff or FullJitterBackoff(most_seconds=MOST_BACKOFF_SECONDS)
        self._stop = asyncio.Event()
        self._stop_timeout_seconds = 0.0
        self._ends: deque[float] = deque(maxlen=FAILED_AFTER)
        self._ready_at: float | None = None

    async def run(self) -> None:
        """Start a process, and another when it ends, until `stop` or `failed`."""
        while not self._stop.is_set():
            ending = await self._run_process()
            if ending.asked or self._stop.is_set():
                break
            self.status.fault = ending.text
            if self._is_hopeless(ending):
                self._on_ended(self.spec, ending, None)
                self._enter("failed")
                return
            delay = self._backoff.next_seconds()
            self._on_ended(self.spec, ending, delay)
            self._enter("backing_off")
            await self._pause(delay)
            self.status.restarts += 1
        self._enter("stopped")

    def stop(self, timeout_seconds: float) -> None:
        """Ask it to end; `run` returns when it has."""
        if self._stop.is_set():
            return
        self._stop_timeout_seconds = timeout_seconds
        self._stop.set()
        if self.host is not None:
            if self.host.pid is not None:
                self._enter("stopping")
            self.host.stop(timeout_seconds)

    def progress(self, state: State) -> None:
        """The process says what it is doing; once it runs, installing is something it does while it runs."""
        if self._stop.is_set():
            return
        if state == "starting" and self._ready_at is not None:
            state = "running"
        self._enter(state)

    def ready(self) -> None:
        """The service object exists and starts."""
        self._ready_at = self._clock.monotonic()
        self.progress("running")

    def note_fault(self, text: str) -> None:
        """An exception that nobody caught; the service goes on."""
        self.status.fault = text
        self._on_state(replace(self.status))

    # --- Inside ---

    async def _run_process(self) -> Ending:
        self._ready_at = None
        host = self.host = self._make_host(self.spec)
        self._enter("starting")
        try:
            ending = await host.run()
        except TemplateError as error:
            ending = Ending(asked=False, text=str(error), counts=False)
        finally:
            self.host = None
            self._on_gone(self.spec)
        self.status.pid = None
        if self._ready_at is not None and self._clock.monotonic() - self._ready_at >= SETTLED_SECONDS:
            self._backoff.reset()
        return ending

    def _is_hopeless(self, ending: Ending) -> bool:
        if ending.permanent:
            return True
        if not ending.counts:
            return False
        now = self._clock.monotonic()
        self._ends.append(now)
        return len(self._ends) == FAILED_AFTER and now - self._ends[0] <= FAILED_WITHIN_SECONDS

    async def _pause(self, seconds: float) -> None:
        """Let the back-off pass, or the wish to stop come."""
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._stop.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _enter(self, state: State) -> None:
        pid = None if self.host is None else self.host.pid
        if state == self.status.state and pid == self.status.pid:
            return
        if state != self.status.state:
            self.status.since_wall = self._clock.wall()
        self.status.state = state
        self.status.pid = pid
        self._on_state(replace(self.status))
