"""The built-in service `com`: between the node's services and the cloud.

Messages to the cloud go straight into the outbox (`SubmitMessage`). What comes back passes here: device twin, direct
methods and cloud-to-device messages, as actions of services.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, ClassVar

from agent.outbox.sinks.cloud import CloudEvent, CloudMessage, MethodAnswer, MethodCall, TwinUpdate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.orchestrator.model import ServiceStatus
    from agent.orchestrator.orchestrator import Orchestrator

log = logging.getLogger(__name__)

METHOD_TIMEOUT_SECONDS = 25.0
"""Below IoT Hub's own default of 30 s, so that the caller gets our answer and not the hub's time-out."""


class Com:
    """Routes cloud events to services."""

    id: ClassVar[str] = "com"
    actions: ClassVar[frozenset[str]] = frozenset({"report"})

    def __init__(self) -> None:
        self._orchestrator: Orchestrator | None = None
        self._report: Callable[[dict[str, Any]], Awaitable[None]] | None = None
        self._twin: dict[str, Any] | None = None
        self._told: dict[str, int | None] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def connect(self, orchestrator: Orchestrator, *, report: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Say who runs the services, and who writes reported properties."""
        self._orchestrator = orchestrator
        self._report = report

    async def handle(self, source: str, action: str, payload: Any) -> None:
        """`report`: a patch of the device twin's reported properties.

        Raises ConnectionError while no IoT Hub is connected, TypeError for a patch that is not a dict.
        """
        if not isinstance(payload, dict):
            raise TypeError(f"{source} sent com a {type(payload).__name__}; `{action}` takes a dict of properties.")
        assert self._report is not None
        await self._report(payload)

    def service_state(self, status: ServiceStatus) -> None:
        """Give a service that has just started the twin that the others have seen already. On the loop only."""
        if status.state != "running":
            self._told.pop(status.id, None)
        elif self._twin is not None and self._told.get(status.id) != status.pid:
            self._told[status.id] = status.pid
            assert self._orchestrator is not None
            task = asyncio.create_task(self._orchestrator.send("com", status.id, "StateUpdate", self._twin))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def cloud_event(self, event: CloudEvent) -> MethodAnswer | None:
        """Hand on what came back from the cloud; the answer counts for a method."""
        match event:
            case TwinUpdate():
                await self._twin_updated(event)
            case CloudMessage():
                await self._message_received(event)
            case MethodCall():
                return await self._method_called(event)
        return None

    async def _twin_updated(self, update: TwinUpdate) -> None:
        assert self._orchestrator is not None
        self._twin = {"desired": update.desired, "reported": update.reported}
        self._told = {status.id: status.pid for status in self._orchestrator.statuses() if status.state == "running"}
        await self._orchestrator.broadcast("StateUpdate", self._twin)

    async def _message_received(self, message: CloudMessage) -> None:
        # Its properties `service` and `action` say whom it is for; without them it is for all, as `Process`.
        assert self._orchestrator is not None
        service = message.properties.get("service", "*")
        action = message.properties.get("action", "Process")
        await self._orchestrator.send("com", service, action, _readable(message.payload))

    async def _method_called(self, call: MethodCall) -> MethodAnswer:
        assert self._orchestrator is not None
        service, dot, action = call.name.rpartition(".")
        if not dot:
            return MethodAnswer(
                status=404, payload={"error": f"This node has no method {call.name}; call <service>.<action>."}
            )
        try:
            result = await self._orchestrator.request(
                "com", service, action, call.payload, timeout=METHOD_TIMEOUT_SECONDS
            )
            return MethodAnswer(status=200, payload=json.loads(json.dumps(result)))
        except LookupError as error:
            return MethodAnswer(status=404, payload={"error": str(error)})
        except TimeoutError:
            return MethodAnswer(
                status=504, payload={"error": f"{call.name} did not answer in {METHOD_TIMEOUT_SECONDS:.0f} s."}
            )
        except Exception as error:  # noqa: BLE001 - the edge to the cloud: a caller there must get an answer
            log.warning("The direct method %s failed: %s", call.name, error)
            return MethodAnswer(status=500, payload={"error": str(error)[:1000]})


def _readable(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return payload.decode("utf-8", errors="replace")
