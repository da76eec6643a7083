"""What stands behind a service: the node, or a test's harness.

The service API (`base_service.py`) is a thin face; everything it does goes through one `Runtime` of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from services.sdk.payload import Payload

if TYPE_CHECKING:
    from services.sdk.base_service import BaseService
    from services.sdk.queue_message import QueueMessage

Level = Literal["debug", "warning", "error"]
Kind = Literal["telemetry", "fault", "tracking"]
Priority = Literal["live", "bulk"]
T = TypeVar("T")
Handler = Callable[["QueueMessage"], Any]


class _Done:
    """An awaitable that has happened already."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


DONE: Awaitable[None] = _Done()


class Runtime(Protocol):
    """The node as a service sees it.

    Methods that return an awaitable are called on `loop` only (`BaseService` brings callers there), do their part at
    once, so that calls keep their order, and return what to wait for. The others may be called from any thread.
    """

    loop: asyncio.AbstractEventLoop

    def identify(self) -> tuple[str, dict[str, Any]]:
        """The id and the configuration of the service that is being made."""

    def log(self, source: str, level: Level, text: str) -> Awaitable[None]:
        """Show a line in the node's log and console."""

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
        """Done once the message is in the node's outbox."""

    def send(self, source: str, destination: str, action: str, message: Any) -> Awaitable[None]:
        """Hand a message to another service's mailbox."""

    def request(
        self, source: str, destination: str, action: str, message: Any, timeout_seconds: float
    ) -> Awaitable[Any]:
        """The same, and wait for what its method returns."""

    def publish(self, source: str, topic: str, message: Any) -> Awaitable[None]:
        """Hand an event to every service that subscribed to its topic."""

    def subscribe(self, source: str, topic_filter: str, handler: Handler) -> Awaitable[None]:
        """Call `handler` for each event whose topic matches."""

    def start_service(self, service: BaseService) -> Awaitable[None]:
        """Run a service object that the caller made."""

    def settings(self) -> dict[str, Any]:
        """A copy of the settings of the last sign-in."""

    def ensure_packages(self, requirements: list[str]) -> None:
        """Make the requirements importable; returns when they are."""

    def print_line(self, text: str) -> None:
        """Write to the node's own log, unbuffered."""


_current: Runtime | None = None


def attach(runtime: Runtime | None) -> None:
    """Make `runtime` the one that service objects made from now on belong to; None for none."""
    global _current  # one runtime a process: field code calls the API before `super().__init__`
    _current = runtime


def current() -> Runtime | None:
    """The runtime of this process, if there is one."""
    return _current


def on_loop(runtime: Runtime, method: Callable[..., Awaitable[T]], /, *arguments: Any, **options: Any) -> Awaitable[T]:
    """Call a runtime's method from whatever loop runs here, and return what to await here."""
    if asyncio.get_running_loop() is runtime.loop:
        return method(*arguments, **options)
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_call(method, arguments, options), runtime.loop))


async def _call(method: Callable[..., Awaitable[T]], arguments: tuple[Any, ...], options: dict[str, Any]) -> T:
    return await method(*arguments, **options)
