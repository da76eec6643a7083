"""What the node tells its portal about itself: services' states, deployments, facts, faults."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent import __version__
from agent.clock import Clock
from agent.errors import HubArgumentsError, HubError, HubProtocolError, HubUnreachableError
from agent.hub.protocol import RECORD_LIMIT_BYTES
from agent.outbox.message import OutboxMessage
from agent.outbox.sinks.base import RefusedMessageError
from agent.system import facts

if TYPE_CHECKING:
    from agent.hub.session import HubSession
    from agent.orchestrator.model import ServiceStatus
    from agent.orchestrator.orchestrator import Orchestrator
    from agent.outbox.stats import OutboxStats
    from agent.outbox.store import Outbox

log = logging.getLogger(__name__)

FACTS_INTERVAL_SECONDS = 60.0
STATES_PAUSE_SECONDS = 0.1
"""A burst of state changes (a deployment) is told in one call."""
CALL_LIMIT_BYTES = RECORD_LIMIT_BYTES // 2
"""Of one call's arguments: a record that is too long would close the connection, and be said again on the next one."""
TEXT_LIMIT = 16 * 1024
"""Characters of one text, which is what a portal keeps of it."""


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
        await self._tell("deploymentState", {"deployment": deployment, "state": state, "error": error[:TEXT_LIMIT]})

    async def facts(self) -> dict[str, Any]:
        """The machine and the agent, measured now."""
        machine = await asyncio.to_thread(facts.read_facts, self._state, clock=self._clock)
        stats = self._outbox.stats()
        return {
            **msgspec.to_builtins(machine),
            "agentVersion": __version__,
            "outbox": {
                "depth": stats.depth,
                "bytes": stats.bytes,
                "limitBytes": stats.limit_bytes,
                "acknowledged": _acknowledged(stats),
            },
        }

    async def deliver_faults(self, messages: Sequence[OutboxMessage]) -> None:
        """Hand faults and tracking records to the portal; returns once it has stored them.

        Raises ConnectionError (HubUnreachableError) when it has not: the outbox keeps them. Raises RefusedMessageError
        when it never will.
        """
        try:
            for records in _in_calls([_fault_record(message) for message in messages]):
                await self._session.invoke("faults", records)
        except HubArgumentsError as error:
            raise RefusedMessageError(str(error)) from error
        except HubProtocolError as error:
            raise HubUnreachableError(f"The portal did not store the faults: {error}") from error

    async def _report_states(self) -> None:
        while True:
            await self._states_changed.wait()
            await self._clock.sleep(STATES_PAUSE_SECONDS)
            self._states_changed.clear()
            await self._tell("serviceStates", _states(self._statuses()))

    async def _report_facts(self) -> None:
        while True:
            try:
                async with asyncio.timeout(FACTS_INTERVAL_SECONDS):
                    await self._facts_wanted.wait()
            except TimeoutError:
                pass
            self._facts_wanted.clear()
            if self._session.connected.is_set():
                try:
                    measured = await self.facts()
                except OSError as error:
                    log.warning("The machine cannot be measured: %s", error, extra={"action": "facts_failed"})
                    continue
                await self._tell("facts", measured)

    async def _tell(self, target: str, document: Any) -> None:
        try:
            await self._session.invoke(target, document)
        except HubError as error:
            # Told anew at the next sign-in, as the current state.
            log.debug("The portal was not told %s: %s", target, error)


def _acknowledged(stats: OutboxStats) -> int:
    """How many messages have reached a cloud, each counted once however many sinks there are."""
    telemetry = (each for each in stats.services if each.kind == "telemetry")
    return sum(max(each.acknowledged.values(), default=0) for each in telemetry)


def _states(statuses: Sequence[ServiceStatus]) -> list[dict[str, Any]]:
    """The services' states, their faults as long as one call has room for."""
    most = TEXT_LIMIT
    while True:
        states = [
            {**asdict(status), "since": status.since_wall, "fault": status.fault and status.fault[:most]}
            for status in statuses
        ]
        for state in states:
            del state["since_wall"]
        if not most or len(msgspec.json.encode(states)) <= CALL_LIMIT_BYTES:
            return states
        most //= 4


def _in_calls(records: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The records in order, in as few calls as they fit in."""
    call: list[dict[str, Any]] = []
    size = 0
    for record in records:
        length = len(msgspec.json.encode(record))
        if call and size + length > CALL_LIMIT_BYTES:
            yield call
            call, size = [], 0
        call.append(record)
        size += length
    if call:
        yield call


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
        **({"record": document} if message.kind == "tracking" else {}),
        "code": _text(document, "code"),
        "text": _text(document, "text"),
        "description": _text(document, "description"),
    }


def _text(document: dict[str, Any], key: str) -> str:
    return str(document.get(key) or "")[:TEXT_LIMIT]
