"""What the orchestrator is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from agent.hub.protocol import ServiceConfig

State = Literal["starting", "installing", "running", "stopping", "stopped", "backing_off", "failed"]
Level = Literal["debug", "info", "warning", "error", "status"]


@dataclass(frozen=True)
class ServiceSpec:
    """One service version that the node is to run.

    Two specs that are equal are the same service; one that differs in anything is restarted.
    """

    id: str
    class_name: str
    file_name: str
    version: str
    script: Path
    sha256: str
    config: ServiceConfig
    enabled: bool = True
    packages: Path | None = None
    """Where its packages are installed; None for the node's own folder."""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class ServiceStatus:
    """What is known of a service.

    Attributes:
        fault: why it last ended, or the last exception that nobody caught; None when nothing went wrong.
        since_wall: seconds since 1970 at which it came into its state.
        restarts: how often it was started again after it ended by itself.
    """

    id: str
    version: str
    state: State
    pid: int | None = None
    fault: str | None = None
    since_wall: float = 0.0
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of a service."""

    service: str
    level: Level
    text: str
    wall: float


class BuiltIn(Protocol):
    """A service that lives in the agent's own loop.

    `handle` is called as a task of its own for each message whose action is one of `actions`; what it returns is the
    answer to a request, what it raises is logged and fails the request.
    """

    @property
    def id(self) -> str:
        """For instance `logger`."""

    @property
    def actions(self) -> frozenset[str]:
        """What it can be sent."""

    async def handle(self, source: str, action: str, payload: Any) -> Any:
        """Handle a message from the service `source`."""
