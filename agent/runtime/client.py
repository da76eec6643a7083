"""The node as a service's process sees it: the service API's `Runtime` over the connection to the agent."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from agent.outbox.limits import check_size
from agent.outbox.message import Submission
from agent.runtime.frames import (
    SUBMISSION_WINDOW,
    WINDOW,
    Accepted,
    Action,
    Answer,
    Begin,
    Committed,
    Fault,
    Frame,
    FrameLink,
    Log,
    Progress,
    Publish,
    Refused,
    Submit,
    Subscribe,
    decode_payload,
    encode_payload,
    window_cost,
)
from services.sdk.base_service import BaseService
from services.sdk.errors import (
    PackagesUnavailableError,
    RequestFailedError,
    SubmissionRefusedError,
    UnknownServiceError,
)
from services.sdk.payload import Payload
from services.sdk.runtime import DONE, Handler, Kind, Priority
from services.sdk.topics import topic_matches

if TYPE_CHECKING:
    from agent.runtime.packages import PackageInstaller

LOG_LINE_LIMIT = 16 * 1024
"""Characters of one log line; the rest is cut."""
SUBMISSION_WINDOW_BYTES = 4 * 1024 * 1024
"""Payload bytes of one process that are on their way to the outbox."""


class _Window:
    """What may still go to one destination before the router says that earlier messages have found their place."""

    __slots__ = ("free", "waiting")

    def __init__(self) -> None:
        self.free = WINDOW
        self.waiting: deque[tuple[Frame, int, asyncio.Future[None]]] = deque()


class NodeRuntime:
    """Implements `services.sdk.runtime.Runtime`. On the loop, except where the protocol says otherwise."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: FrameLink,
        begin: Begin,
        *,
        producer: str,
        adopt: Callable[[BaseService], Awaitable[None]],
    ) -> None:
        self.loop = loop
        self.service_id = begin.service
        self.producer = producer
        self._begin = begin
        self._link = link
        self._adopt = adopt
        self._thread = threading.get_ident()
        self._settings = bytes(begin.settings)
        self._windows: dict[str, _Window] = {}
        self._requests: dict[int, asyncio.Future[Any]] = {}
        self._last_request = 0
        self._subscriptions: list[tuple[str, Handler]] = []
        # In order: all submissions that are not acknowledged, and those of them that are not written yet.
        self._pending: dict[int, tuple[Submit, asyncio.Future[None]]] = {}
        self._unsent: deque[Submit] = deque()
        self._last_submission = 0
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._all_committed: asyncio.Event | None = None
        # Packages.
        self._packages_lock = threading.Lock()
        self._installer: PackageInstaller | None = None
        self._installs = False

    # --- The service API ------------------------------------------------------------------------------------------

    def identify(self) -> tuple[str, dict[str, Any]]:
        """The service that the process is for."""
        return self.service_id, self._begin.config

    def log(self, source: str, level: Literal["debug", "warning", "error"], text: str) -> Awaitable[None]:
        """Write a line and push it out: the code may crash right after."""
        self._link.write(Log(self._source(source), level, text[:LOG_LINE_LIMIT]))
        self._link.flush()
        return DONE

    def submit(
        self,
        source: str,
        payload: Payload,
        *,
        kind: Kind = "telemetry",
        priority: Priority = "live",
        ttl_seconds: float | None = None,
        properties: dict[str, str] | None = None,
    ) -> Awaitable[None]:
        """Number the message and hand it in; the future is done when the outbox has committed it."""
        frame = Submit(
            self._last_submission + 1,
            self._source(source),
            kind,
            priority,
            payload.content,
            payload.content_type,
            payload.content_encoding,
            dict(properties) if properties else {},
            ttl_seconds,
        )
        check_size(as_submission(frame, service=self.service_id, producer=self.producer))
        self._last_submission += 1
        future: asyncio.Future[None] = self.loop.create_future()
        self._pending[frame.sequence] = (frame, future)
        if self._unsent or self._in_flight >= SUBMISSION_WINDOW or self._in_flight_bytes >= SUBMISSION_WINDOW_BYTES:
            self._unsent.append(frame)
        else:
            self._write_submission(frame)
        return future

    def send(self, source: str, destination: str, action: str, message: Any) -> Awaitable[None]:
        """Hand a message to another service's mailbox; done at once unless the window is used up."""
        return self._send(Action(self._source(source), destination, action, 0, encode_payload(message)))

    async def request(self, source: str, destination: str, action: str, message: Any, timeout_seconds: float) -> Any:
        """Send, and wait for the answer."""
        self._last_request += 1
        number = self._last_request
        answer: asyncio.Future[Any] = self.loop.create_future()
        self._requests[number] = answer
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._send(Action(self._source(source), destination, action, number, encode_payload(message)))
                return await answer
        except TimeoutError as error:
            raise TimeoutError(f"{destination} did not answer {action} within {timeout_seconds} s.") from error
        finally:
            del self._requests[number]

    def publish(self, source: str, topic: str, message: Any) -> Awaitable[None]:
        """Hand an event over; the window of all events is one."""
        return self._enter_window("", Publish(self._source(source), topic, encode_payload(message)))

    def subscribe(self, source: str, topic_filter: str, handler: Handler) -> Awaitable[None]:
        """Note the handler here and the filter with the agent, which says it in order with what is published later."""
        self._subscriptions.append((topic_filter, handler))
        self._link.write(Subscribe(topic_filter))
        return DONE

    def start_service(self, service: BaseService) -> Awaitable[None]:
        """Run another service object in this process."""
        return self._adopt(service)

    def settings(self) -> dict[str, Any]:
        """Decode the settings anew, so that nobody changes another's. From any thread."""
        decoded = msgspec.msgpack.decode(self._settings)
        return decoded if isinstance(decoded, dict) else {}

    def ensure_packages(self, requirements: list[str]) -> None:
        """Install what is missing for this service alone and make it importable. From any thread; blocks."""
        # Imported here: it needs much that most services do not.
        from agent.runtime.packages import PackageError, PackageInstaller, activate

        with self._packages_lock:
            if self._installer is None:
                self._installer = PackageInstaller(Path(self._begin.packages), log=self._installing)
            try:
                folder = self._installer.ensure(self.service_id, requirements)
            except PackageError as error:
                raise PackagesUnavailableError(str(error)) from error
            finally:
                if self._installs:
                    self._installs = False
                    self.post(Progress("starting"))
            if folder is not None:
                for sentence in activate(folder):
                    self.post(Log("", "warning", sentence))

    def _installing(self, text: str) -> None:
        if not self._installs:
            self._installs = True
            self.post(Progress("installing"))
        for line in text.splitlines():
            self.post(Log("", "info", line[:LOG_LINE_LIMIT]))

    def print_line(self, text: str) -> None:
        """Print; what is printed goes to the node's log. From any thread."""
        print(text, flush=True)  # noqa: T201 - the process's output is what the agent reads

    # --- For the rest of the process ------------------------------------------------------------------------------

    def post(self, frame: Frame) -> None:
        """Send a frame from any thread."""
        if threading.get_ident() == self._thread:
            self._link.write(frame)
            self._link.flush()
        else:
            self.loop.call_soon_threadsafe(self._link.write, frame)

    def report(self, text: str, traceback: str) -> None:
        """Tell the portal of an exception that nobody caught. From any thread."""
        self.post(Fault(text, traceback))

    def handlers(self, topic: str) -> list[Handler]:
        """Who in this process wants events of a topic."""
        return [handler for topic_filter, handler in self._subscriptions if topic_matches(topic_filter, topic)]

    def accepted(self, frame: Accepted) -> None:
        """Earlier messages have found their place; send what waits."""
        window = self._windows.get(frame.destination)
        if window is None:
            return
        window.free += frame.cost
        while window.waiting and window.free > 0:
            waiting, cost, future = window.waiting.popleft()
            if not future.cancelled():
                window.free -= cost
                self._link.write(waiting)
                future.set_result(None)
        if window.free >= WINDOW:
            del self._windows[frame.destination]

    def answered(self, frame: Answer) -> None:
        """Give a request its answer; one that has given up is forgotten."""
        future = self._requests.get(frame.request)
        if future is None or future.done():
            return
        content = decode_payload(frame.payload)
        if not frame.error:
            future.set_result(content)
        elif frame.error == "unknown":
            future.set_exception(UnknownServiceError(content))
        else:
            future.set_exception(RequestFailedError(content))

    def committed(self, frame: Committed) -> None:
        """Everything up to a number is in the outbox."""
        # Numbers rise, so the oldest are first.
        for sequence in list(itertools.takewhile(frame.sequence.__ge__, self._pending)):
            self._settle(sequence, None)
        self._send_unsent()

    def refused(self, frame: Refused) -> None:
        """One was not taken."""
        self._settle(frame.sequence, SubmissionRefusedError(frame.text))
        self._send_unsent()

    def signed_in(self, settings: msgspec.Raw) -> None:
        """The node has new settings."""
        self._settings = bytes(settings)

    async def wait_committed(self) -> None:
        """Wait until nothing is on its way to the outbox."""
        if self._pending:
            self._all_committed = asyncio.Event()
            await self._all_committed.wait()

    def unacknowledged(self) -> list[Submission]:
        """What the outbox has not said it has, in order. From any thread."""
        return [
            as_submission(frame, service=self.service_id, producer=self.producer)
            for frame, _ in list(self._pending.values())
        ]

    # --- Inside ---------------------------------------------------------------------------------------------------

    def _source(self, source: str) -> str:
        return "" if source == self.service_id else source

    def _send(self, frame: Action) -> Awaitable[None]:
        return self._enter_window(frame.destination, frame)

    def _enter_window(self, destination: str, frame: Action | Publish) -> Awaitable[None]:
        window = self._windows.get(destination)
        if window is None:
            window = self._windows[destination] = _Window()
        cost = window_cost(frame.payload)
        if window.free > 0:
            window.free -= cost
            self._link.write(frame)
            return DONE
        future: asyncio.Future[None] = self.loop.create_future()
        window.waiting.append((frame, cost, future))
        return future

    def _write_submission(self, frame: Submit) -> None:
        self._in_flight += 1
        self._in_flight_bytes += len(frame.payload)
        self._link.write(frame)

    def _settle(self, sequence: int, error: Exception | None) -> None:
        entry = self._pending.pop(sequence, None)
        if entry is None:
            return
        frame, future = entry
        self._in_flight -= 1
        self._in_flight_bytes -= len(frame.payload)
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _send_unsent(self) -> None:
        while self._unsent and self._in_flight < SUBMISSION_WINDOW and self._in_flight_bytes < SUBMISSION_WINDOW_BYTES:
            self._write_submission(self._unsent.popleft())
        if not self._pending and self._all_committed is not None:
            self._all_committed.set()


def as_submission(frame: Submit, *, service: str, producer: str) -> Submission:
    """A process's submission, as the outbox takes it."""
    return Submission(
        service=frame.source or service,
        payload=frame.payload,
        kind=frame.kind,
        content_type=frame.content_type,
        content_encoding=frame.content_encoding,
        properties=frame.properties,
        lane=frame.lane,
        ttl_seconds=frame.ttl_seconds,
        producer=producer,
        producer_sequence=frame.sequence,
    )
