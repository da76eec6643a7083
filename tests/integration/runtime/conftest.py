"""A node without a portal: the orchestrator with real processes, and what came out of it."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.clock import SystemClock
from agent.errors import StorageError
from agent.hub.protocol import Property, ServiceConfig
from agent.orchestrator.orchestrator import LogRecord, Orchestrator, ServiceSpec, ServiceStatus
from agent.outbox.message import Submission
from agent.paths import Paths

WAIT_SECONDS = 20.0


class Node:
    """An orchestrator, and a record of everything that it says."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.lines: list[LogRecord] = []
        self.submissions: list[Submission] = []
        self.states: list[ServiceStatus] = []
        self.settings: dict[str, Any] = {"nodeName": "shed", "tags": ["#pi"], "enableTracking": False}
        self.refusal: StorageError | None = None
        self.hold_back = False
        self.held_back: list[Callable[[], None]] = []
        self._changed = asyncio.Event()
        self.orchestrator = Orchestrator(
            paths=paths,
            clock=SystemClock(),
            submit_many=self._submit_many,
            built_ins=[],
            log=self._log,
            settings=lambda: self.settings,
            on_state=self._state,
            stop_timeout_seconds=5.0,
        )

    def spec(
        self, source: str, *, name: str | None = None, version: str = "0.1", static: dict[str, Any] | None = None
    ) -> ServiceSpec:
        """Write a script as the deployment would; the class's name is the file's."""
        text = textwrap.dedent(source)
        content = text.encode()
        if name is None:
            name = text.split("class ", 1)[1].split("(", 1)[0].strip()
        sha256 = hashlib.sha256(content).hexdigest()
        script = self.paths.scripts / sha256 / f"{name}.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_bytes(content)
        config = ServiceConfig(
            general_config=[Property(id="enabled", value=True)],
            static_config=[Property(id=key, value=value) for key, value in (static or {}).items()],
        )
        return ServiceSpec(
            id=f"{name.lower()}_py",
            class_name=name,
            file_name=f"{name}.py",
            version=version,
            script=script,
            sha256=sha256,
            config=config,
        )

    async def run(self, *sources: str | ServiceSpec) -> None:
        """Deploy these services."""
        await self.orchestrator.apply(
            [source if isinstance(source, ServiceSpec) else self.spec(source) for source in sources]
        )

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something to be true; looks again whenever the node says anything."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not (value := condition()):
                    self._changed.clear()
                    await self._changed.wait()
                return value
        except TimeoutError:
            said = "\n".join(f"{line.service} {line.level}: {line.text}" for line in self.lines[-30:])
            raise AssertionError(
                f"It did not come to: {inspect.getsource(condition).strip()}\nThe node said:\n{said}"
            ) from None

    async def line(self, text: str, *, level: str | None = None) -> LogRecord:
        """Wait for a line that contains `text`."""
        found: LogRecord = await self.until(
            lambda: next(
                (line for line in self.lines if text in line.text and level in (None, line.level)),
                None,
            )
        )
        return found

    async def state(self, service: str, state: str) -> ServiceStatus:
        """Wait for a service to come into a state."""
        found: ServiceStatus = await self.until(
            lambda: next((s for s in self.orchestrator.statuses() if s.id == service and s.state == state), None)
        )
        return found

    def status(self, service: str) -> ServiceStatus:
        """The service's status now."""
        return next(status for status in self.orchestrator.statuses() if status.id == service)

    def texts(self, service: str | None = None) -> list[str]:
        """What was logged."""
        return [line.text for line in self.lines if service in (None, line.service)]

    def payloads(self, service: str | None = None, *, kind: str = "telemetry") -> list[Any]:
        """What was submitted, decoded."""
        return [
            msgspec.json.decode(one.payload)
            for one in self.submissions
            if one.kind == kind and service in (None, one.service)
        ]

    def faults(self, service: str | None = None) -> list[Any]:
        """What was reported as a fault."""
        return self.payloads(service, kind="fault")

    def _submit_many(
        self, submissions: Sequence[Submission], callback: Callable[[list[int], StorageError | None], None]
    ) -> None:
        if self.refusal is not None:
            callback([], self.refusal)
            return

        def commit() -> None:
            self.submissions.extend(submissions)
            self._changed.set()
            callback(list(range(1, len(submissions) + 1)), None)

        if self.hold_back:
            self.held_back.append(commit)
            self._changed.set()
        else:
            commit()

    def _log(self, record: LogRecord) -> None:
        self.lines.append(record)
        self._changed.set()

    def _state(self, status: ServiceStatus) -> None:
        self.states.append(status)
        self._changed.set()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state", runtime=tmp_path / "run")


@pytest.fixture
async def node(paths: Paths, no_blocking_calls: object) -> AsyncIterator[Node]:
    node = Node(paths)
    running = asyncio.create_task(node.orchestrator.run())
    yield node
    await node.orchestrator.stop(2.0)
    await running


@pytest.fixture
def node_class() -> type[Node]:
    """For tests that end the node in their own way."""
    return Node
