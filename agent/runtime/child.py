"""Inside a service's process: what the template process becomes when it is forked for a service."""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextlib
import faulthandler
import fcntl
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from inspect import isawaitable
from pathlib import Path
from typing import Any, TextIO

import msgspec

from agent.files import write_atomically
from agent.runtime import client, deliveries, frames, loading
from agent.runtime.frames import (
    Accepted,
    Answer,
    Begin,
    Committed,
    Crashed,
    Deliver,
    Event,
    FrameLink,
    Hello,
    Proceed,
    Ready,
    Refused,
    Settings,
    Stop,
    Stopped,
)
from services.sdk import runtime as sdk_runtime
from services.sdk.base_service import BaseService, ServiceQueue

LIFELINE_SECONDS = 4.0
"""How long the process may go on without the agent before its lifeline ends it, whatever its loop is doing."""
LOCK_SECONDS = 8.0
"""How long to wait for an earlier process of the same service, left by an agent that died, to be gone."""
CANCEL_SECONDS = 1.0
"""How long tasks may take to end after they were cancelled."""
STATUS_CRASHED = 1
STATUS_FAILED = 70
"""A fault of ours (EX_SOFTWARE)."""
STATUS_ORPHANED = 75
"""The agent is gone (EX_TEMPFAIL)."""

_decoder = msgspec.msgpack.Decoder(frames.FromAgent)


def preload() -> None:
    """Import and warm what every service uses, so that the template's children share it."""
    # asyncio's subprocesses, selectors and the rest come with `import asyncio`; these do not.
    import json  # noqa: F401
    import logging  # noqa: F401
    import tokenize  # noqa: F401 - tracebacks read source lines through it


def main(link: socket.socket, output: int, lifeline: int) -> int:
    """Be a service's process; return its exit status."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _redirect(output)
    faulthandler.enable()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    process = ServiceProcess(loop, lifeline)
    try:
        return loop.run_until_complete(process.run(link))
    except SystemExit as request:
        return _status_of(request)
    except Exception:  # noqa: BLE001 - the process's edge: the agent reads the traceback from the output
        traceback.print_exc()
        return STATUS_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        # Not `loop.close()` and not the interpreter's own end: both wait for threads and tasks of the service, which
        # may never end. Exit handlers run: gpiozero's put outputs back.
        process.push_out()
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _redirect(output: int) -> None:
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    sys.stdout = _line_stream(1)
    sys.stderr = _line_stream(2)


def _line_stream(descriptor: int) -> TextIO:
    # A lone surrogate in what a service prints must not be able to raise in its `print`.
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _status_of(request: SystemExit) -> int:
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code & 0xFF
    print(request.code, file=sys.stderr, flush=True)  # noqa: T201 - as the interpreter does
    return 1


class ServiceProcess:
    """One service, from its first frame to its last."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lifeline: int) -> None:
        self._loop = loop
        self._lifeline = lifeline
        self._producer = secrets.token_hex(8)
        self._begin: asyncio.Future[Begin] = loop.create_future()
        self._proceed: asyncio.Future[None] = loop.create_future()
        self._stop: asyncio.Future[float] = loop.create_future()
        self._crash: asyncio.Future[Crashed] = loop.create_future()
        self._link: FrameLink | None = None
        self._runtime: client.NodeRuntime | None = None
        self._deliveries: deliveries.Deliveries | None = None
        self._services: dict[str, BaseService] = {}
        self._starts: set[asyncio.Task[None]] = set()
        self._spill: Path | None = None
        self._saving = threading.Lock()
        self._lock_file: int | None = None

    async def run(self, sock: socket.socket) -> int:
        """Load, start, serve, stop. Returns the exit status."""
        self._loop.set_exception_handler(self._unhandled)
        threading.excepthook = self._unhandled_in_thread
        _, link = await self._loop.create_unix_connection(
            lambda: FrameLink(_decoder, self._received, self._agent_gone, eager=True), sock=sock
        )
        self._link = link
        begin = await self._begin
        self._spill = Path(begin.spill) / f"{begin.service}-{self._producer}.msgpack"
        # Not a `threading.Thread`: that takes 150 KB more in each service, and shows among the service's own.
        _thread.start_new_thread(self._watch_lifeline, ())
        self._settle_in(begin)
        self._runtime = client.NodeRuntime(self._loop, link, begin, producer=self._producer, adopt=self._adopt)
        self._deliveries = deliveries.Deliveries(link, self._runtime, self._services)
        signal.signal(signal.SIGTERM, self._terminated)
        link.write(Hello(self._producer))
        await self._proceed
        life = self._loop.create_task(self._live(begin))
        await asyncio.wait((self._stop, self._crash), return_when=asyncio.FIRST_COMPLETED)
        if self._crash.done() and not self._stop.done():
            link.write(self._crash.result())
            link.flush()
            return STATUS_CRASHED
        life.cancel()
        await self._end(self._stop.result())
        return 0

    def push_out(self) -> None:
        """Give the last frames a moment to leave, after the loop was broken off."""
        if self._link is not None and self._link.open:
            self._link.close()
            with contextlib.suppress(TimeoutError, RuntimeError):
                self._loop.run_until_complete(asyncio.wait_for(self._link.gone.wait(), CANCEL_SECONDS))

    # --- Beginning ------------------------------------------------------------------------------------------------

    def _settle_in(self, begin: Begin) -> None:
        """Take the working directory and the service's lock."""
        os.environ.update(begin.environment)
        os.environ["OUTSTATION_SERVICE_ID"] = begin.service
        folder = Path(begin.folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chdir(folder)
        sys.argv = [begin.script]
        self._lock_file = os.open(".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._wait_for_lock(self._lock_file)

    def _wait_for_lock(self, descriptor: int) -> None:
        # The process of an agent that was killed holds its pins, and may yet save messages that come before ours.
        previous = signal.signal(signal.SIGALRM, _raise_timeout)
        signal.setitimer(signal.ITIMER_REAL, LOCK_SECONDS)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except TimeoutError:
            print("An earlier process of this service has not ended; going on beside it.", file=sys.stderr)  # noqa: T201
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)

    async def _live(self, begin: Begin) -> None:
        """Load the script, make the object, let it start; what stands in the way ends the process with the reason."""
        phase: Any = "load"
        runtime = self._runtime
        assert runtime is not None
        assert self._link is not None
        try:
            source = loading.read_script(begin)
            code = loading.compile_script(begin, source)
            if requirements := _requirements(begin, source):
                phase = "packages"
                await asyncio.to_thread(runtime.ensure_packages, requirements)
            phase = "load"
            sdk_runtime.attach(runtime)
            found = loading.find_class(begin, code)
            phase = "construction"
            service = loading.construct(found, begin.service, ServiceQueue(runtime), begin.config)
        except Exception as error:  # noqa: BLE001 - the service's boundary
            self._crash_with(phase, error)
            return
        self._run_service(begin.service, service)

    def _run_service(self, service_id: str, service: BaseService) -> None:
        assert self._link is not None
        self._services[service_id] = service
        start = self._loop.create_task(_settle(service.Start), name=f"{service_id} Start")
        self._starts.add(start)
        start.add_done_callback(self._started)
        self._link.write(Ready(service_id))

    def _started(self, start: asyncio.Task[None]) -> None:
        self._starts.discard(start)
        if not start.cancelled() and (error := start.exception()) is not None and isinstance(error, Exception):
            self._crash_with("start", error)

    async def _adopt(self, service: BaseService) -> None:
        self._run_service(service.id, service)

    def _crash_with(self, phase: Any, error: Exception) -> None:
        if self._crash.done():
            return
        assert self._begin.done()
        begin = self._begin.result()
        if isinstance(error, loading.LoadError):
            crash = Crashed(phase, str(error), "", permanent=True)
        else:
            where = {"load": "while it was loaded", "construction": "in its constructor", "start": "in Start"}.get(
                phase
            )
            text = f"{type(error).__name__}: {error}"
            if where is not None:
                text = f"{begin.class_name} raised {text} ({where})"
            crash = Crashed(phase, text, "".join(traceback.format_exception(error)))
        self._crash.set_result(crash)

    # --- Frames -----------------------------------------------------------------------------------------------------

    def _received(self, frame: Any) -> None:
        runtime = self._runtime
        match frame:
            case Deliver():
                if self._deliveries is not None:
                    self._deliveries.deliver(frame)
            case Event():
                if self._deliveries is not None:
                    self._deliveries.event(frame)
            case Begin():
                self._begin.set_result(_kept(frame))
            case Proceed():
                self._proceed.set_result(None)
            case Stop():
                self._ask_to_stop(frame.timeout_seconds)
            case _ if runtime is None:
                pass
            case Accepted():
                runtime.accepted(frame)
            case Committed():
                runtime.committed(frame)
            case Answer():
                runtime.answered(frame)
            case Refused():
                runtime.refused(frame)
            case Settings():
                runtime.signed_in(frame.settings)

    # --- Ending -----------------------------------------------------------------------------------------------------

    def _ask_to_stop(self, timeout_seconds: float) -> None:
        if not self._stop.done():
            self._stop.set_result(timeout_seconds)

    def _terminated(self, number: int, _frame: types.FrameType | None) -> None:
        """SIGTERM, in the main thread between two bytecodes: also when the loop does not turn."""
        if self._stop.done():
            os._exit(128 + number)
        self._loop.call_soon_threadsafe(self._ask_to_stop, 10.0)

    async def _end(self, timeout_seconds: float) -> None:
        """Let the services stop, cancel what is left, hand over what they submitted."""
        assert self._link is not None
        deadline = self._loop.time() + timeout_seconds
        stops = [self._loop.create_task(self._stop_service(*entry)) for entry in self._services.items()]
        if stops:
            _, late = await asyncio.wait(stops, timeout=timeout_seconds)
            if late:
                self._note(f"Stop did not end within {timeout_seconds:g} s and was cancelled.")
        me = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not me]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CANCEL_SECONDS)
        if self._runtime is not None:
            with contextlib.suppress(TimeoutError):
                remaining = max(CANCEL_SECONDS, deadline - self._loop.time())
                await asyncio.wait_for(self._runtime.wait_committed(), remaining)
        self._link.write(Stopped())

    async def _stop_service(self, service_id: str, service: BaseService) -> None:
        try:
            await _settle(service.Stop)
        except Exception as error:  # noqa: BLE001 - the service's boundary
            self._report(f"{service_id}.Stop raised {type(error).__name__}: {error}", error)

    def _agent_gone(self, _error: frames.FrameError | None) -> None:
        """The connection has ended: save what is not in the outbox, and go."""
        if self._link is not None and self._link.closing:
            return
        try:
            self._save()
        finally:
            # On a full disk too: nobody was told that these messages are stored.
            os._exit(STATUS_ORPHANED)

    def _save(self) -> None:
        """Write what the outbox has not acknowledged to the spill folder, once. From any thread."""
        with self._saving:
            spill, self._spill = self._spill, None
            if spill is None or self._runtime is None:
                return
            left = self._runtime.unacknowledged()
            if left:
                write_atomically(spill, msgspec.msgpack.encode(left))

    def _watch_lifeline(self) -> None:
        """End the process when the agent has gone and the loop has not noticed. Its own thread."""
        with contextlib.suppress(OSError):
            if os.read(self._lifeline, 1):
                return
            time.sleep(LIFELINE_SECONDS)
            try:
                self._save()
            finally:
                os._exit(STATUS_ORPHANED)

    # --- What nobody caught -----------------------------------------------------------------------------------------

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = context.get("message") or "an error in the event loop"
        if isinstance(error, BaseException):
            self._report(f"{text}: {type(error).__name__}: {error}", error)
        else:
            self._note(text)

    def _unhandled_in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is None or isinstance(arguments.exc_value, SystemExit):
            return
        name = "a thread" if arguments.thread is None else arguments.thread.name
        error = arguments.exc_value
        self._report(f"Thread {name} ended by {type(error).__name__}: {error}", error)

    def _report(self, text: str, error: BaseException) -> None:
        if self._runtime is not None:
            self._runtime.report(text, "".join(traceback.format_exception(error)))

    def _note(self, text: str) -> None:
        if self._runtime is not None:
            self._runtime.post(frames.Log("", "warning", text))


async def _settle(method: Callable[[], Any]) -> None:
    """Call what should be a coroutine function and may be a plain one."""
    result = method()
    if isawaitable(result):
        await result


def _kept(begin: Begin) -> Begin:
    # The settings are a view of the link's buffer, which is used again.
    return msgspec.structs.replace(begin, settings=msgspec.Raw(bytes(begin.settings)))


def _requirements(begin: Begin, source: bytes) -> list[str]:
    """What the script's PEP 723 header asks for. Raises LoadError for a header that cannot be used."""
    if b"# /// script" not in source:
        return []
    # Imported here: it needs much that most services do not.
    from agent.runtime.packages import PackageError, pep723_dependencies

    try:
        return pep723_dependencies(source.decode(errors="replace"))
    except PackageError as error:
        raise loading.LoadError(f"{begin.file_name}: {error}") from error


def _raise_timeout(_number: int, _frame: types.FrameType | None) -> None:
    raise TimeoutError
