"""The built-in service `com`: between the node's services and the cloud.

Messages to the cloud go straight into the outbox (`SubmitMessage`). What comes back passes here: device twin, direct
methods and cloud-to-device messages, as actions of services.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, ClassVar

from agent.outbox.message import Submission
from agent.outbox.sinks.cloud import CloudEvent, CloudMessage, MethodAnswer, MethodCall, TwinUpdate
from services.sdk.payload import encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.orchestrator.orchestrator import Orchestrator

    from agent.orchestrator.model import ServiceStatus

log = logging.getLogger(__name__)

METHOD_TIMEOUT_SECONDS = 25.0
"""Below IoT Hub's own default of 30 s, so that the caller gets our answer and not the hub's time-out."""


class Com:
    """Routes cloud events to services.

    Args:
        submit: stores a message in the outbox.
    """

    id: ClassVar[str] = "com"
    actions: ClassVar[frozenset[str]] = frozenset({"submit", "report"})

    def __init__(self, submit: Callable[[Submission], Awaitable[int]]) -> None:
        self._submit = submit
        self._orchestrator: Orchestrator | None = None
        self._report: Callable[[dict[str, Any]], Awaitable[None]] | None = None
        self._twin: dict[str, Any] | None = None

    def connect(self, orchestrator: Orchestrator, *, report: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Say who runs the services, and who writes reported properties."""
        self._orchestrator = orchestrator
        self._report = report

    async def handle(self, source: str, action: str, payload: Any) -> Any:
        """`submit`: as SubmitMessage. `report`: a patch of the device twin's reported properties."""
        if action == "submit":
            message = encode(payload)
            await self._submit(
                Submission(
                    service=source,
                    payload=message.content,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                )
            )
        elif self._report is not None and isinstance(payload, dict):
            await self._report(payload)

    async def service_running(self, status: ServiceStatus) -> None:
        """Give a service that has just started the twin that the others have seen already."""
        if self._orchestrator is not None and self._twin is not None:
            await self._orchestrator.send("com", status.id, "StateUpdate", self._twin)

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
        self._twin = {"desired": update.desired, "reported": update.reported}
        if self._orchestrator is not None:
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
