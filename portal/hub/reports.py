"""What nodes tell: console lines, states of services and deployments, facts, faults, tracking, answers to commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from agent.hub.protocol import Invocation
from portal.console.service import plain_text
from portal.faults.models import Fault
from portal.faults.repository import FaultRepository
from portal.hub.connection import NodeConnection, Reply
from portal.hub.records import (
    FACTS_LIMIT_BYTES,
    FAULTS_AT_ONCE,
    SERVICES_AT_ONCE,
    ConsoleDetails,
    DeploymentReport,
    FaultReport,
    MalformedArgumentsError,
    ServiceReport,
    argument,
    clip,
    moment,
    read,
    tracking_record,
)
from portal.hub.refusal import node_of
from portal.hub.registry import Registry
from portal.nodes.models import NodeService
from portal.nodes.readings import delivered_of
from portal.nodes.repository import NodeRepository
from portal.tracking.models import TrackingRecord
from portal.tracking.repository import TrackingRepository

if TYPE_CHECKING:
    from portal.portal import Portal

_LEVELS = frozenset({"debug", "info", "warning", "error", "status"})
_DEPLOYMENT_STATES = frozenset({"running", "staged", "failed"})


class Reports:
    """Takes in what nodes tell."""

    def __init__(self, portal: Portal, registry: Registry) -> None:
        self._portal = portal
        self._registry = registry

    async def nothing(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """Take note of what needs no answer."""
        return Reply()

    async def heart_beat(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`heartBeat`: say the same."""
        return Reply(then=(Invocation("heartBeat", [clip(argument(arguments, 0, "echo"), 100)]),))

    async def log_message(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`logMessage`: a console line, kept while the console is on."""
        node_id = node_of(connection)
        if connection.told is None or not connection.told.console:
            return Reply()
        now = self._portal.now()
        text, level = plain_text(clip(argument(arguments, 1)))
        details = read(argument(arguments, 3) or {}, ConsoleDetails, "details")
        if len(arguments) > 3 and details.level in _LEVELS:
            level = details.level  # type: ignore[assignment]
        self._portal.console_book.append(
            organization_id=connection.organization_id,
            node_id=node_id,
            node=connection.node_name,
            service=clip(details.service, 100),
            level=level,
            text=text,
            time=moment(details.time, now),
        )
        return Reply()

    async def service_states(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`serviceStates`: replace what is stored."""
        node_id = node_of(connection)
        reports = read(argument(arguments, 0), list[ServiceReport], "states")[:SERVICES_AT_ONCE]
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            if await nodes.get(connection.organization_id, node_id) is None:
                return Reply()
            by_id = {clip(report.id, 100): report for report in reports}
            await nodes.set_services(
                node_id,
                [
                    NodeService(
                        node_id=node_id,
                        service_id=service_id,
                        version=clip(report.version, 20),
                        state=clip(report.state, 20),
                        pid=report.pid,
                        fault=clip(report.fault),
                        since=moment(report.since, now) if report.since is not None else None,
                    )
                    for service_id, report in by_id.items()
                ],
            )
        self._tell(connection, node_id, "services")
        return Reply()

    async def deployment_state(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`deploymentState`: what became of a deployment."""
        node_id = node_of(connection)
        report = read(argument(arguments, 0), DeploymentReport, "deployment")
        if report.state not in _DEPLOYMENT_STATES:
            raise MalformedArgumentsError(f"state: {clip(report.state, 50)!r} is not running, staged or failed")
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            node = await nodes.get(connection.organization_id, node_id)
            if node is None:
                return Reply()
            before = (node.reported_deployment, node.deployment_state, node.deployment_error)
            node.reported_deployment = clip(report.deployment, 64)
            node.deployment_state = report.state
            node.deployment_error = clip(report.error)
            if before != (node.reported_deployment, node.deployment_state, node.deployment_error):
                text = f"The deployment is {report.state}." if not report.error else f"The deployment {report.state}: "
                nodes.record(node, now, "deployment", text + node.deployment_error, deployment=node.reported_deployment)
        self._tell(connection, node_id, "changed")
        return Reply()

    async def facts(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`facts`: what the node measured of itself."""
        node_id = node_of(connection)
        facts = read(argument(arguments, 0), dict[str, Any], "facts")
        if len(msgspec.json.encode(facts)) > FACTS_LIMIT_BYTES:
            raise MalformedArgumentsError(f"facts: larger than {FACTS_LIMIT_BYTES} bytes")
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            node = await NodeRepository(session).get(connection.organization_id, node_id)
            if node is None:
                return Reply()
            node.facts = facts
            node.facts_at = now
            node.readings_delivered = delivered_of(facts)
            node.last_seen_at = now
        self._tell(connection, node_id, "changed")
        return Reply()

    async def faults(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`faults`: store the faults and tracking records that are new; the completion says that they are stored."""
        node_id = node_of(connection)
        reports = read(argument(arguments, 0), list[FaultReport], "faults")
        if len(reports) > FAULTS_AT_ONCE:
            raise MalformedArgumentsError(f"faults: more than {FAULTS_AT_ONCE} at once")
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            node = await nodes.get(connection.organization_id, node_id)
            if node is None:
                return Reply(error="The node was deleted in the portal.")
            faults: list[Fault] = []
            tracking: list[TrackingRecord] = []
            for report in reports:
                place: dict[str, Any] = {
                    "organization_id": connection.organization_id,
                    "node_id": node_id,
                    "stream": clip(report.stream, 64),
                    "service": clip(report.service, 100),
                    "sequence": report.sequence,
                    "boot": clip(report.boot, 64),
                    "at": moment(report.time, now),
                    "received_at": now,
                }
                if report.kind == "tracking":
                    tracking.append(TrackingRecord(**place, record=tracking_record(report)))
                else:
                    code, text, description = clip(report.code, 50), clip(report.text), clip(report.description)
                    faults.append(Fault(**place, code=code, text=text, description=description))
            tracked = await TrackingRepository(session).add_new(node_id, tracking)
            stored = await FaultRepository(session).add_new(node_id, faults)
            for fault in stored:
                text = f"{fault.service}: {fault.text}"[:1000]
                nodes.record(node, now, "fault", text, code=fault.code, service=fault.service, fault_id=fault.id)
        if stored:
            self._tell(connection, node_id, "fault")
        if tracked:
            self._tell(connection, node_id, "tracking")
        return Reply()

    async def notify(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`notify`, an answer to whoever gave a command: an ERROR ends it as refused, anything else is a remark."""
        node_id = node_of(connection)
        who = clip(argument(arguments, 0), 100)
        text = clip(argument(arguments, 1))
        level = clip(argument(arguments, 2), 20).upper()
        command = connection.commands.get(who)
        if command is None and len(connection.commands) == 1:
            # Commands without arguments do not carry the number of who asked.
            command = next(iter(connection.commands.values()))
        if command is not None:
            command.notices.append(text)
            if level == "ERROR" and not command.answer.done():
                command.answer.set_result({"refused": text})
        self._portal.console_book.append(
            organization_id=connection.organization_id,
            node_id=node_id,
            node=connection.node_name,
            service="agent",
            level="error" if level == "ERROR" else "status",
            text=text,
            time=self._portal.now(),
        )
        return Reply()

    async def ping_response(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`pingResponse`: the answer to a ping."""
        self._answer(connection, argument(arguments, 3), {"state": clip(argument(arguments, 2), 50)})
        return Reply()

    async def report_state_response(self, connection: NodeConnection, arguments: list[Any]) -> Reply:
        """`reportStateResponse`: the answer to a report."""
        report = read(argument(arguments, 0), dict[str, Any], "report")
        # An original agent sends its whole environment, secrets and all; nobody needs it.
        report.pop("env", None)
        self._answer(connection, argument(arguments, 1), report)
        return Reply()

    def _answer(self, connection: NodeConnection, who: Any, result: dict[str, Any]) -> None:
        node_of(connection)
        command = connection.commands.get(clip(who, 100))
        if command is not None and not command.answer.done():
            command.answer.set_result({"result": result})

    def _tell(self, connection: NodeConnection, node_id: str, change: str) -> None:
        self._registry.publish(connection.organization_id, change, node_id, connection.node_name)
