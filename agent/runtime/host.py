"""The agent's side of one process of a service, from its fork to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from agent.orchestrator.model import Level, ServiceSpec
from agent.outbox.message import Submission
from agent.runtime import frames
from agent.runtime.client import as_submission
from agent.runtime.forking import ForkedProcess, TemplateProcess
from agent.runtime.frames import (
    Begin,
    Crashed,
    Fault,
    FrameError,
    FrameLink,
    Hello,
    Log,
    Proceed,
    Progress,
    Ready,
    Settings,
    Stop,
    Submit,
)
from agent.runtime.output import OutputLines, RateLimit
from agent.runtime.submissions import SubmissionRelay, SubmitMany

log = logging.getLogger(__name__)

LINES_PER_SECOND = 200.0
LINES_BURST = 2000
FAULTS_PER_SECOND = 0.2
FAULTS_BURST = 20
CLOSED_SECONDS = 2.0
"""How long a process may live on after its connection has ended."""
AFTERMATH_SECONDS = 2.0
"""How long to wait, after a process has ended, for the last of its frames and lines."""
STOP_GRACE_SECONDS = 3.0
"""What a process has beyond `Stop`'s own time to cancel its tasks and hand over what it submitted."""
TERMINATE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""

_decoder = msgspec.msgpack.Decoder(frames.FromProcess)


class HostEvents(Protocol):
    """Who wants to know what a process does. Called on the loop; must not block."""

    async def hello(self, host: ServiceHost) -> None:
        """No earlier process of the service is left: take in what it saved."""

    def ready(self, host: ServiceHost, service: str) -> None:
        """The object exists; messages may come."""

    def progress(self, host: ServiceHost, state: Literal["starting", "installing", "running"]) -> None:
        """What the process is doing."""

    def line(self, service: str, level: Level, text: str) -> None:
        """A line for the log."""

    def fault(self, service: str, text: str, traceback: str) -> None:
        """An exception that nobody caught; the process goes on."""

    def thrown(self, submission: Submission) -> None:
        """A service reports an error by `ThrowError`; it is on its way to the outbox."""

    def tracking(self) -> bool:
        """Whether tracking records are wanted."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended.

    Attributes:
        asked: it was told to stop, and did so by itself or by force.
        text: one sentence.
        details: a traceback or its last lines.
        permanent: the same script can only fail again.
        counts: it says something against the service; a package index out of reach does not.
    """

    asked: bool
    text: str = ""
    details: str = ""
    permanent: bool = False
    counts: bool = True


class ServiceHost:
    """One process of one service. On the loop only.

    Args:
        settings: the settings of the last sign-in, encoded.
        folder: the process's working directory.
        monotonic: seconds from the injected clock, for rate limits.
    """

    def __init__(
        self,
        spec: ServiceSpec,
        *,
        template: TemplateProcess,
        events: HostEvents,
        submit_many: SubmitMany,
        settings: msgspec.Raw,
        folder: str,
        packages: str,
        spill: str,
        environment: dict[str, str],
        monotonic: Callable[[], float],
    ) -> None:
        self.spec = spec
        self.link: FrameLink | None = None
        self._template = template
        self._events = events
        self._submit_many = submit_many
        self._begin = Begin(
            service=spec.id,
            class_name=spec.class_name,
            file_name=spec.file_name,
            version=spec.version,
            script=str(spec.script),
            sha256=spec.sha256,
            config=configuration(spec),
            environment={**environment, **spec.environment},
            settings=settings,
            folder=folder,
            packages=packages if spec.packages is None else str(spec.packages),
            spill=spill,
        )
        self._lines = RateLimit(per_second=LINES_PER_SECOND, burst=LINES_BURST, monotonic=monotonic)
        self._faults = RateLimit(per_second=FAULTS_PER_SECOND, burst=FAULTS_BURST, monotonic=monotonic)
        self._output = OutputLines(lambda text: self._line(spec.id, "info", text))
        self._process: ForkedProcess | None = None
        self._relay: SubmissionRelay | None = None
        self._producer = ""
        self._crash: Crashed | None = None
        self._violation: str | None = None
        self._stop_asked = asyncio.Event()
        self._stop_timeout_seconds = 0.0
        self._hello: asyncio.Task[None] | None = None
        self.handlers: dict[type, Callable[[Any], None]] = {
            Submit: self._submit,
            Log: self._logged,
            Fault: self._fault,
            Progress: self._progress,
            Ready: self._ready,
            Hello: self._greeted,
            Crashed: self._crashed,
        }
        """What is called with each frame; the router adds its own when the service is ready."""

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        return None if self._process is None else self._process.pid

    async def run(self) -> Ending:
        """Fork the process and stay until it has ended. Raises TemplateError when there is no process to be had."""
        loop = asyncio.get_running_loop()
        process = self._process = await self._template.fork()
        output, _ = await loop.connect_read_pipe(lambda: self._output, os.fdopen(process.output, "rb", 0))
        _, link = await loop.create_unix_connection(
            lambda: FrameLink(_decoder, self._received, self._closed), sock=process.link
        )
        self.link = link
        self._relay = SubmissionRelay(self._submit_many, link)
        link.write(self._begin)
        stopping = loop.create_task(self._see_off(process), name=f"stop {self.spec.id}")
        try:
            status = await asyncio.shield(process.exited)
            await self._aftermath(link)
        finally:
            process.signal(signal.SIGKILL)
            stopping.cancel()
            if self._hello is not None:
                self._hello.cancel()
            link.abort()
            output.close()
        return self._ending(status)

    def stop(self, timeout_seconds: float) -> None:
        """Ask the process to end; it is made to when `Stop` takes longer than that. `run` returns when it has ended."""
        if not self._stop_asked.is_set():
            self._stop_timeout_seconds = timeout_seconds
            self._stop_asked.set()

    def signed_in(self, settings: msgspec.Raw) -> None:
        """Pass new settings on."""
        if self.link is not None:
            self.link.write(Settings(settings))

    # --- Its end ---

    async def _see_off(self, process: ForkedProcess) -> None:
        """Stop, then SIGTERM, then SIGKILL."""
        await self._stop_asked.wait()
        if self.link is not None:
            self.link.write(Stop(self._stop_timeout_seconds))
        for seconds, number in (
            (self._stop_timeout_seconds + STOP_GRACE_SECONDS, signal.SIGTERM),
            (TERMINATE_SECONDS, signal.SIGKILL),
        ):
            done, _ = await asyncio.wait([process.exited], timeout=seconds)
            if done:
                return
            self._line(self.spec.id, "warning", f"The process did not end when asked; it is sent {number.name}.")
            process.signal(number)

    async def _aftermath(self, link: FrameLink) -> None:
        """Take in what the process said last: its reason may be among it."""
        waits = [asyncio.ensure_future(event.wait()) for event in (link.gone, self._output.ended)]
        _, late = await asyncio.wait(waits, timeout=AFTERMATH_SECONDS)
        for wait in late:
            wait.cancel()

    def _closed(self, error: FrameError | None) -> None:
        if error is not None:
            self._violation = f"The process broke the rules of its connection: {error}."
        process = self._process
        if process is not None and not process.exited.done():
            asyncio.get_running_loop().call_later(CLOSED_SECONDS, self._end_unconnected, process)

    def _end_unconnected(self, process: ForkedProcess) -> None:
        if not process.exited.done():
            self._violation = self._violation or "The process closed its connection to the agent."
            process.signal(signal.SIGKILL)

    def _ending(self, status: int | None) -> Ending:
        name = self.spec.class_name
        if self._stop_asked.is_set():
            return Ending(asked=True)
        tail = "\n".join(self._output.tail)
        if self._crash is not None:
            crash = self._crash
            return Ending(
                asked=False,
                text=crash.text,
                details=crash.traceback or tail,
                permanent=crash.permanent,
                counts=crash.phase != "packages",
            )
        if self._violation is not None:
            return Ending(asked=False, text=f"{name}: {self._violation}", details=tail)
        return Ending(asked=False, text=f"{name} {describe_status(status)}.", details=tail)

    # --- Frames ---

    def _received(self, frame: Any) -> None:
        handler = self.handlers.get(type(frame))
        if handler is not None:
            handler(frame)

    def _logged(self, frame: Log) -> None:
        self._line(frame.source or self.spec.id, frame.level, frame.text)

    def _ready(self, frame: Ready) -> None:
        self._events.ready(self, frame.service)

    def _progress(self, frame: Progress) -> None:
        self._events.progress(self, frame.state)

    def _crashed(self, frame: Crashed) -> None:
        self._crash = frame

    def _greeted(self, frame: Hello) -> None:
        if self._hello is not None or not frame.producer.isalnum():
            raise FrameError("it said hello twice, or wrongly")
        self._producer = frame.producer
        self._hello = asyncio.get_running_loop().create_task(self._greet())

    async def _greet(self) -> None:
        await self._events.hello(self)
        if self.link is not None:
            self.link.write(Proceed())

    def _submit(self, frame: Submit) -> None:
        assert self._relay is not None
        submission = as_submission(frame, service=self.spec.id, producer=self._producer)
        if frame.kind == "tracking" and not self._events.tracking():
            self._relay.skip(submission)
            return
        if frame.kind == "fault":
            self._events.thrown(submission)
        self._relay.put(submission)

    def _line(self, service: str, level: Level, text: str) -> None:
        if self._lines.allow():
            if held_back := self._lines.held_back():
                self._events.line(self.spec.id, "warning", f"{held_back} lines were left out: too many at once.")
            self._events.line(service, level, text)

    def _fault(self, frame: Fault) -> None:
        if self._faults.allow():
            if held_back := self._faults.held_back():
                self._line(self.spec.id, "warning", f"{held_back} exceptions were not reported: too many at once.")
            self._events.fault(self.spec.id, frame.text, frame.traceback)


def configuration(spec: ServiceSpec) -> dict[str, Any]:
    """The configuration as services read it: three lists of `{"id", "value", "type"}`."""
    return {
        f"{part}Config": [
            {"id": entry.id, "value": entry.value, "type": entry.type}
            for entry in getattr(spec.config, f"{part}_config")
        ]
        for part in ("general", "static", "security")
    }


def describe_status(status: int | None) -> str:
    """How a process ended, from its wait status: "ended by itself with status 3", "died of SIGSEGV (signal 11)"."""
    if status is None:
        return "ended; how is not known, because the template process had ended before it"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended by itself with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"died of signal {-code}"
    hint = " (out of memory, or killed by hand)" if name == "SIGKILL" else ""
    return f"died of {name} (signal {-code}){hint}"
