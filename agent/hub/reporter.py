"""What the node tells its portal about itself: services' states, deployments, facts, faults."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent import __version__
from agent.clock import Clock
from agent.errors import HubError, HubProtocolError, HubUnreachableError
from agent.outbox.message import OutboxMessage
from agent.system import facts

if TYPE_CHECKING:
    from agent.hub.session import HubSession
    from agent.orchestrator.model import ServiceStatus
    from agent.orchestrator.orchestrator import Orchestrator
    from agent.outbox.store import Outbox

log = logging.getLogger(__name__)

FACTS_INTERVAL_SECONDS = 60.0
STATES_PAUSE_SECONDS = 0.1
"""A burst of state changes (a deployment) is told in one call."""


class Reporter:
    """Reports while there is a connection; what must not be lost goes through the outbox instead (`deliver_faults`)."""

    def __init__(self, session: HubSession, outbox: Outbox, *, state: Path, clock: Clock) -> None:
        self._state = state
        self._session = session
        self._outbox = outbox
        self._clock = clock
        self._statuses: Callable[[], list[ServiceStatus]] = list
        self._states_changed = asyncio.Event()
        self._facts_wanted = asyncio.Event()

    def connect(self, orchestrator: Orchestrator) -> None:
        """Say who knows the services' states."""
        self._statuses = orchestrator.statuses

    def service_state(self, _: ServiceStatus) -> None:
        """A service's state changed."""
        self._states_changed.set()

    def signed_in(self) -> None:
        """A new connection: the portal is told everything anew."""
        self._states_changed.set()
        self._facts_wanted.set()

    async def run(self) -> None:
        """Report until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._report_states(), name="report states")
            tasks.create_task(self._report_facts(), name="report facts")

    async def deployment(self, deployment: str, state: str, error: str) -> None:
        """Say what became of a deployment."""
        await self._tell("deploymentState", {"deployment": deployment, "state": state, "error": error})

    async def facts(self) -> dict[str, Any]:
        """The machine and the agent, measured now."""
        machine = await asyncio.to_thread(facts.read_facts, self._state, clock=self._clock)
        stats = self._outbox.stats()
        return {
            **msgspec.to_builtins(machine),
            "agentVersion": __version__,
            "outbox": {"depth": stats.depth, "bytes": stats.bytes, "limitBytes": stats.limit_bytes},
        }

    async def deliver_faults(self, messages: Sequence[OutboxMessage]) -> None:
        """Hand faults and tracking records to the portal; returns once it has stored them.

        Raises ConnectionError (HubUnreachableError) when it has not: the outbox keeps them.
        """
        records = [_fault_record(message) for message in messages]
        try:
            await self._session.invoke("faults", records)
        except HubProtocolError as error:
            raise HubUnreachableError(f"The portal did not store the faults: {error}") from error

    async def _report_states(self) -> None:
        while True:
            await self._states_changed.wait()
            await self._clock.sleep(STATES_PAUSE_SECONDS)
            self._states_changed.clear()
            states = [{**asdict(status), "since": status.since_wall} for status in self._statuses()]
            for state in states:
                state.pop("since_wall")
            await self._tell("serviceStates", states)

    async def _report_facts(self) -> None:
        while True:
            try:
                async with asyncio.timeout(FACTS_INTERVAL_SECONDS):
                    await self._facts_wanted.wait()
            except TimeoutError:
                pass
            self._facts_wanted.clear()
            if self._session.connected.is_set():
                await self._tell("facts", await self.facts())

    async def _tell(self, target: str, document: Any) -> None:
        try:
            await self._session.invoke(target, document)
        except HubError as error:
            # Told anew at the next sign-in, as the current state.
            log.debug("The portal was not told %s: %s", target, error)


def _fault_record(message: OutboxMessage) -> dict[str, Any]:
    try:
        document = json.loads(message.payload)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"text": message.payload.decode("utf-8", errors="replace")}
    return {
        "stream": message.stream,
        "service": message.service,
        "sequence": message.sequence,
        "boot": message.boot,
        "time": message.created_wall,
        "kind": message.kind,
        "code": str(document.get("code") or ""),
        "text": str(document.get("text") or ""),
        "description": str(document.get("description") or ""),
    }
