"""Fakes that ship with the product: for our tests, and for the tests of those who write services.

A service in a test of five lines:

    async def test_heating_reports_its_target():
        async with ServiceHarness(Heating, static={"target": 21}) as heating:
            await heating.deliver("set_target", {"celsius": 22})
            assert heating.messages == [{"target": 22}]
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

from agent.orchestrator.model import ServiceSpec, ServiceStatus
from agent.outbox.limits import check_size
from agent.outbox.message import Submission
from agent.runtime.frames import decode_payload, encode_payload
from agent.runtime.loading import construct, find_action
from services.sdk import runtime as sdk_runtime
from services.sdk.base_service import BaseService, ServiceQueue
from services.sdk.errors import RequestFailedError, UnknownServiceError
from services.sdk.payload import Payload
from services.sdk.queue_message import QueueMessage
from services.sdk.runtime import DONE, Handler, Kind, Level, Priority
from services.sdk.topics import topic_matches

__all__ = ["FakeClock", "FakeOrchestrator", "Sent", "ServiceHarness"]

WAIT_SECONDS = 5.0

ServiceT = TypeVar("ServiceT", bound=BaseService)


class FakeClock:
    """A clock that stands still until a test moves it.

    Example:
        clock = FakeClock()
        await clock.advance(60)

    Args:
        wall: seconds since 1970 (default: 2025-01-01).
        monotonic: seconds since boot (default 100).
    """

    def __init__(self, *, wall: float = 1_735_689_600.0, monotonic: float = 100.0, boot_id: str = "boot-1") -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._boot_id = boot_id
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._slept = asyncio.Event()

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._wall

    def monotonic(self) -> float:
        """Seconds since boot."""
        return self._monotonic

    def boot_id(self) -> str:
        """The boot's name."""
        return self._boot_id

    async def sleep(self, seconds: float) -> None:
        """Wait until the test has moved the clock so far."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), future))
        self._slept.set()
        await future

    def set_wall(self, wall: float) -> None:
        """Correct the wall clock, as NTP does; nobody's sleep ends by it."""
        self._wall = wall

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking sleepers in the order of their times and letting each act at its own."""
        until = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            due, _, future = heapq.heappop(self._sleepers)
            self._move(due)
            if not future.done():
                future.set_result(None)
                for _ in range(5):
                    await asyncio.sleep(0)
        self._move(until)

    async def until_asleep(self) -> float:
        """Wait until somebody sleeps; returns for how many seconds the next one still does."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                sleepers = [due for due, _, future in self._sleepers if not future.done()]
                if sleepers:
                    return min(sleepers) - self._monotonic
                self._slept.clear()
                await self._slept.wait()

    def _move(self, monotonic: float) -> None:
        self._wall += monotonic - self._monotonic
        self._monotonic = monotonic


@dataclass(frozen=True)
class Sent:
    """A message that a service sent to another."""

    destination: str
    action: str
    message: Any


@dataclass
class _HarnessRuntime:
    """The node around a service in a test."""

    loop: asyncio.AbstractEventLoop
    service_id: str
    config: dict[str, Any]
    node_settings: dict[str, Any]
    answers: Mapping[tuple[str, str], Any]
    logged: list[tuple[Level, str]] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    published: list[tuple[str, Any]] = field(default_factory=list)
    subscriptions: list[tuple[str, Handler]] = field(default_factory=list)
    adopted: list[BaseService] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def identify(self) -> tuple[str, dict[str, Any]]:
        return self.service_id, self.config

    def log(self, source: str, level: Level, text: str) -> Awaitable[None]:
        self.logged.append((level, text))
        return self._done()

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
        submission = Submission(
            service=source,
            payload=payload.content,
            kind=kind,
            content_type=payload.content_type,
            content_encoding=payload.content_encoding,
            properties=properties or {},
            lane=priority,
            ttl_seconds=ttl_seconds,
        )
        check_size(submission)
        self.submissions.append(submission)
        return self._done()

    def send(self, source: str, destination: str, action: str, message: Any) -> Awaitable[None]:
        self.sent.append(Sent(destination, action, _travelled(message)))
        return self._done()

    async def request(self, source: str, destination: str, action: str, message: Any, timeout_seconds: float) -> Any:
        sent = Sent(destination, action, _travelled(message))
        self.sent.append(sent)
        self._done()
        try:
            answer = self.answers[destination, action]
        except KeyError:
            raise UnknownServiceError(f"The harness has no answer for {destination}.{action}.") from None
        if isinstance(answer, TimeoutError):
            raise answer
        if isinstance(answer, Exception):
            raise RequestFailedError(f"{type(answer).__name__}: {answer}")
        return answer(sent.message) if callable(answer) else answer

    def publish(self, source: str, topic: str, message: Any) -> Awaitable[None]:
        self.published.append((topic, _travelled(message)))
        return self._done()

    def subscribe(self, source: str, topic_filter: str, handler: Handler) -> Awaitable[None]:
        self.subscriptions.append((topic_filter, handler))
        return self._done()

    def start_service(self, service: BaseService) -> Awaitable[None]:
        self.adopted.append(service)
        return self._done()

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(json.dumps(self.node_settings))
        return settings

    def ensure_packages(self, requirements: list[str]) -> None:
        self.packages += requirements

    def print_line(self, text: str) -> None:
        print(text, flush=True)  # noqa: T201 - a test captures it

    def _done(self) -> Awaitable[None]:
        self.changed.set()
        return DONE


class ServiceHarness(Generic[ServiceT]):
    """A node around one service, for a test: no process, no network, nothing to install.

    Entering constructs the service as a node does and calls `Start`; leaving calls `Stop` and ends what is left. What
    `Start` raises is raised to the test, at the latest when leaving.

    Example:
        async with ServiceHarness(Heating, static={"target": 21}) as heating:
            await heating.deliver("set_target", {"celsius": 22})
            assert heating.messages == [{"target": 22}]

    Args:
        service_class: the service.
        general, static, security: the properties' values by id.
        settings: what `get_settings` returns (default: a node called `test-node`).
        answers: what requests to other services are answered, by `(destination, action)`: a value, a function of the
            message, or an exception to fail with.
    """

    def __init__(
        self,
        service_class: type[ServiceT],
        *,
        general: Mapping[str, Any] | None = None,
        static: Mapping[str, Any] | None = None,
        security: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        answers: Mapping[tuple[str, str], Any] | None = None,
    ) -> None:
        self._class = service_class
        self._config = {
            f"{part}Config": [{"id": id, "value": value} for id, value in (values or {}).items()]
            for part, values in (("general", general or {"enabled": True}), ("static", static), ("security", security))
        }
        self._settings = dict(settings or {"nodeName": "test-node", "tags": [], "deviceState": {"desired": {}}})
        self._answers = answers or {}
        self._runtime: _HarnessRuntime
        self._start: asyncio.Task[None] | None = None
        self._outer: sdk_runtime.Runtime | None = None
        self.service: ServiceT
        """The service object."""

    async def __aenter__(self) -> ServiceHarness[ServiceT]:
        self._runtime = _HarnessRuntime(
            asyncio.get_running_loop(),
            f"{self._class.__name__.lower()}_py",
            self._config,
            self._settings,
            self._answers,
        )
        self._outer = sdk_runtime.current()
        sdk_runtime.attach(self._runtime)
        try:
            made = construct(self._class, self._runtime.service_id, ServiceQueue(self._runtime), self._config)
            assert isinstance(made, self._class)
            self.service = made
            self._start = asyncio.create_task(self._run_start())
            # One turn: a `Start` that does not wait for anything is through now.
            await asyncio.sleep(0)
            if self._start.done():
                self._start.result()
        except BaseException:
            sdk_runtime.attach(self._outer)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.service.Stop()
            assert self._start is not None
            self._start.cancel()
            await asyncio.wait([self._start])
            if error is None and not self._start.cancelled():
                self._start.result()
        finally:
            sdk_runtime.attach(self._outer)

    # --- What the test does ---

    async def deliver(self, action: str, message: Any = None, *, source: str = "test") -> Any:
        """Call a method as another service would; returns what it returned, raises what it raised.

        Raises LookupError when the service has no such method.
        """
        method = find_action(self.service, action)
        if method is None:
            raise LookupError(f"{type(self.service).__name__} has no method {action} that other services can call.")
        result = method(QueueMessage(source, self._runtime.service_id, action, _travelled(message)))
        return await result if inspect.isawaitable(result) else result

    async def publish(self, topic: str, message: Any, *, source: str = "test") -> int:
        """Publish an event as another service would; returns how many of the service's handlers got it."""
        handlers = [handler for filter, handler in self._runtime.subscriptions if topic_matches(filter, topic)]
        for handler in handlers:
            result = handler(QueueMessage(source, self._runtime.service_id, topic, _travelled(message)))
            if inspect.isawaitable(result):
                await result
        return len(handlers)

    async def update_state(self, *, desired: Mapping[str, Any], reported: Mapping[str, Any] | None = None) -> None:
        """Deliver a device twin to `StateUpdate`."""
        await self.deliver("StateUpdate", {"desired": dict(desired), "reported": dict(reported or {})}, source="com")

    async def until(self, condition: Callable[[], Any], *, seconds: float = WAIT_SECONDS) -> Any:
        """Wait for something that the service does by itself; TimeoutError after `seconds` (default 5)."""
        async with asyncio.timeout(seconds):
            while not (value := condition()):
                self._runtime.changed.clear()
                await self._runtime.changed.wait()
            return value

    # --- What the other side saw ---

    @property
    def messages(self) -> list[Any]:
        """What was submitted to the cloud, decoded; text and bytes that are not JSON as they are."""
        return [_decoded(one) for one in self._runtime.submissions if one.kind == "telemetry"]

    @property
    def submissions(self) -> list[Submission]:
        """The same, with properties, priority and the rest."""
        return [one for one in self._runtime.submissions if one.kind == "telemetry"]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """What was thrown with `ThrowError`: dicts with `code`, `text`, `description`."""
        return [json.loads(one.payload) for one in self._runtime.submissions if one.kind == "fault"]

    @property
    def tracked(self) -> list[dict[str, Any]]:
        """What was recorded with `Track`."""
        return [json.loads(one.payload) for one in self._runtime.submissions if one.kind == "tracking"]

    @property
    def logged(self) -> list[tuple[Level, str]]:
        """Levels and texts of `Debug` and `Warning`."""
        return self._runtime.logged

    @property
    def sent(self) -> list[Sent]:
        """Messages and requests to other services."""
        return self._runtime.sent

    @property
    def published(self) -> list[tuple[str, Any]]:
        """Topics and messages of events."""
        return self._runtime.published

    @property
    def packages(self) -> list[str]:
        """What `AddPipPackage` asked for; the harness installs nothing."""
        return self._runtime.packages

    async def _run_start(self) -> None:
        result: Any = self.service.Start()
        if inspect.isawaitable(result):
            await result


class FakeOrchestrator:
    """Records what it is told, for tests of who tells it.

    Args:
        answers: what requests are answered, by `(destination, action)`: a value, or an exception to raise.
    """

    def __init__(self, *, answers: Mapping[tuple[str, str], Any] | None = None) -> None:
        self.applied: list[list[ServiceSpec]] = []
        self.sent: list[tuple[str, str, str, Any]] = []
        self.broadcasts: list[tuple[str, Any]] = []
        self.stopped: float | None = None
        self.settings_pushed = 0
        self.service_statuses: list[ServiceStatus] = []
        self._answers = answers or {}

    async def apply(self, specs: Sequence[ServiceSpec]) -> None:
        """Note the services."""
        self.applied.append(list(specs))
        self.service_statuses = [ServiceStatus(id=spec.id, version=spec.version, state="running") for spec in specs]

    async def send(self, source: str, destination: str, action: str, payload: Any) -> None:
        """Note a message."""
        self.sent.append((source, destination, action, _travelled(payload)))

    async def broadcast(self, action: str, payload: Any) -> None:
        """Note a broadcast."""
        self.broadcasts.append((action, _travelled(payload)))

    async def request(self, source: str, destination: str, action: str, payload: Any, timeout: float = 30.0) -> Any:
        """Note a request and answer it. Raises UnknownServiceError when the test gave no answer."""
        self.sent.append((source, destination, action, _travelled(payload)))
        try:
            answer = self._answers[destination, action]
        except KeyError:
            raise UnknownServiceError(f"No service {destination} runs on this node.") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def statuses(self) -> list[ServiceStatus]:
        """What was applied last, as running."""
        return list(self.service_statuses)

    def settings_changed(self) -> None:
        """Count."""
        self.settings_pushed += 1

    async def stop(self, timeout_seconds: float) -> None:
        """Note the end."""
        self.stopped = timeout_seconds


def _travelled(message: Any) -> Any:
    """What comes out at the other side of a process boundary: tuples are lists there."""
    return decode_payload(encode_payload(message))


def _decoded(submission: Submission) -> Any:
    if submission.content_type == "application/json":
        return json.loads(submission.payload)
    return submission.payload.decode() if submission.content_type == "text/plain" else submission.payload
