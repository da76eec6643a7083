"""Runs the node's services: which ones, each in its process, and the messages between them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import msgspec

from agent.clock import Clock
from agent.orchestrator.lifecycle import ServiceLife
from agent.orchestrator.model import BuiltIn, Level, LogRecord, ServiceSpec, ServiceStatus
from agent.orchestrator.router import AgentSender, Port, Router
from agent.orchestrator.spill import take_in_spills
from agent.outbox.message import Submission
from agent.paths import Paths
from agent.runtime.forking import TemplateProcess
from agent.runtime.frames import Action, encode_payload
from agent.runtime.host import Ending, ServiceHost
from agent.runtime.submissions import SubmitMany
from agent.runtime.template import ORPHAN_SECONDS

__all__ = ["BuiltIn", "LogRecord", "Orchestrator", "ServiceSpec", "ServiceStatus"]

log = logging.getLogger(__name__)

CRASH_FAULT_CODE = "90000"
"""A service ended by itself, or an exception in it was not caught."""
STOP_TIMEOUT_SECONDS = 10.0
DETAILS_LIMIT = 8 * 1024
"""Characters of a traceback that travel with a fault."""


class Orchestrator:
    """The node's services. On the loop only.

    Args:
        submit_many: hands messages in as one transaction and calls back.
        built_ins: services that live in the agent's own loop.
        log: shows a line; must not block.
        settings: the settings that services may see; asked at each start and sign-in.
        on_state: called with a copy of a service's status at each change.
        environment: variables for every service's process.
        stop_timeout_seconds: how long a service's `Stop` may take (default 10 s).
    """

    def __init__(
        self,
        *,
        paths: Paths,
        clock: Clock,
        submit_many: SubmitMany,
        built_ins: Sequence[BuiltIn],
        log: Callable[[LogRecord], None],
        settings: Callable[[], dict[str, Any]],
        on_state: Callable[[ServiceStatus], None],
        environment: Mapping[str, str] | None = None,
        stop_timeout_seconds: float = STOP_TIMEOUT_SECONDS,
    ) -> None:
        self._paths = paths
        self._clock = clock
        self._submit_many = submit_many
        self._log = log
        self._settings = settings
        self._on_state = on_state
        self._environment = dict(environment or {})
        self._stop_timeout_seconds = stop_timeout_seconds
        self._router = Router(self._warn)
        for built_in in (*built_ins, _OrchestratorService(self)):
            self._router.add_built_in(built_in)
        self._services: dict[str, _Service] = {}
        self._pushed_settings = b""
        self._changing = asyncio.Lock()
        self._template = TemplateProcess()
        self._tasks: asyncio.TaskGroup | None = None
        self._started = asyncio.Event()
        self._ending = asyncio.Event()

    # --- Its life ---

    async def run(self) -> None:
        """Run until `stop` or until cancelled; either way no process of a service is left.

        Raises TemplateError when no process can be started at all.
        """
        try:
            await self._template.start()
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._started.set()
                late = tasks.create_task(self._take_in_late_spills(), name="late spills")
                await self._ending.wait()
                late.cancel()
        finally:
            self._tasks = None
            await self._template.close()

    async def stop(self, timeout_seconds: float) -> None:
        """Stop every service, each within `timeout_seconds`, then end `run`. May be called more than once."""
        self._ending.set()
        for service in self._services.values():
            service.life.stop(timeout_seconds)
        tasks = [service.task for service in self._services.values() if service.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    # --- What runs ---

    async def apply(self, specs: Sequence[ServiceSpec]) -> None:
        """Make these the node's services: start, stop and restart what changed, and leave the others alone.

        Returns when what is to stop has stopped and what is to start is starting.
        """
        await self._started.wait()
        async with self._changing:
            self.settings_changed()
            wanted = {spec.id: spec for spec in specs}
            leaving = [service for service in self._services.values() if wanted.get(service.spec.id) != service.spec]
            await self._halt(leaving, self._stop_timeout_seconds)
            for service in leaving:
                del self._services[service.spec.id]
                if service.spec.id not in wanted:
                    self._close_mailbox(service.spec.id)
            for spec in specs:
                if spec.id not in self._services:
                    service = self._services[spec.id] = _Service(spec, self._make_life(spec))
                    if spec.enabled:
                        self._start(service)
                    else:
                        self._close_mailbox(spec.id)
                        self._on_state(replace(service.life.status))

    async def start_service(self, service_id: str) -> None:
        """Start a service that is stopped or failed. Raises LookupError when the node has none of that id."""
        async with self._changing:
            self._start(self._service(service_id))

    async def stop_service(self, service_id: str) -> None:
        """Stop a service until it is started again or deployed anew. Raises LookupError."""
        async with self._changing:
            await self._halt([self._service(service_id)], self._stop_timeout_seconds)
            self._close_mailbox(service_id)

    async def restart_service(self, service_id: str) -> None:
        """Stop a service and start it again. Raises LookupError."""
        async with self._changing:
            service = self._service(service_id)
            await self._halt([service], self._stop_timeout_seconds)
            self._start(service)

    def statuses(self) -> list[ServiceStatus]:
        """What is known of each service, as copies."""
        return [replace(service.life.status) for service in self._services.values()]

    @property
    def template_pid(self) -> int | None:
        """The process that services are forked from."""
        return self._template.pid

    def settings_changed(self) -> None:
        """Give the services the settings as they are now."""
        settings = self._encoded_settings()
        if bytes(settings) == self._pushed_settings:
            return
        self._pushed_settings = bytes(settings)
        for service in self._services.values():
            if service.life.host is not None:
                service.life.host.signed_in(settings)

    # --- Messages from the agent ---

    async def send(self, source: str, destination: str, action: str, payload: Any) -> None:
        """Call a method of a service, or of all with `*`; returns when it is on its way.

        A service with a thousand unfinished messages does not get it, and a warning says so: the agent waits for none.
        Raises TypeError or ValueError for a payload that cannot be sent.
        """
        self._router.offer(source, destination, action, payload)

    async def broadcast(self, action: str, payload: Any) -> None:
        """Call a method of every service that has it, in the name of the orchestrator."""
        self.settings_changed()
        self._router.offer("orchestrator", "*", action, payload)

    async def request(self, source: str, destination: str, action: str, payload: Any, timeout: float = 30.0) -> Any:
        """Call a method of a service and return what it returns.

        Raises UnknownServiceError (a LookupError), RequestFailedError, or TimeoutError after `timeout` seconds.
        """
        sender = AgentSender()
        self._router.route(Action(source, destination, action, 1, encode_payload(payload)), source, sender)
        try:
            async with asyncio.timeout(timeout):
                return await sender.answered
        except TimeoutError as error:
            raise TimeoutError(f"{destination} did not answer {action} within {timeout:g} s.") from error

    # --- What processes do (HostEvents) ---

    async def hello(self, host: ServiceHost) -> None:
        """Take in what an earlier process of the service saved, before this one submits anything."""
        await take_in_spills(self._paths, self._submit_batch, service=host.spec.id)

    def ready(self, host: ServiceHost, service: str) -> None:
        """A service object exists: it gets its messages."""
        running = self._services.get(host.spec.id)
        if running is None or running.life.host is not host or host.link is None:
            return
        if service == host.spec.id:
            running.port = self._router.attach(service, host.link)
            host.handlers.update(running.port.handlers)
            running.life.ready()
        elif running.port is not None and not self._router.adopt(running.port, service):
            self._warn(
                host.spec.id, f"{service} runs already; what {host.spec.id} made under that id gets no messages."
            )

    def progress(self, host: ServiceHost, state: Literal["starting", "installing", "running"]) -> None:
        """Show what the process is doing."""
        running = self._services.get(host.spec.id)
        if running is not None and running.life.host is host:
            running.life.progress(state)

    def line(self, service: str, level: Level, text: str) -> None:
        """Show a line."""
        self._log(LogRecord(service, level, text, self._clock.wall()))

    def fault(self, service: str, text: str, traceback: str) -> None:
        """Report an exception that nobody caught."""
        self.line(service, "error", text)
        running = self._services.get(service)
        if running is not None:
            running.life.note_fault(text)
        self._submit_fault(service, text, traceback)

    def thrown(self, submission: Submission) -> None:
        """Show in red what a service throws; the portal has it from the outbox."""
        fault = msgspec.json.decode(submission.payload)
        code = f" ({fault['code']})" if fault.get("code") else ""
        self.line(submission.service, "error", f"{fault.get('text', '')}{code}")

    def tracking(self) -> bool:
        """Whether the node's tracking is on."""
        return bool(self._settings().get("enableTracking"))

    # --- Inside ---

    def _service(self, service_id: str) -> _Service:
        try:
            return self._services[service_id]
        except KeyError:
            raise LookupError(f"This node has no service {service_id}.") from None

    def _make_life(self, spec: ServiceSpec) -> ServiceLife:
        return ServiceLife(
            spec,
            clock=self._clock,
            make_host=self._make_host,
            on_state=self._on_state,
            on_gone=self._gone,
            on_ended=self._ended,
        )

    def _make_host(self, spec: ServiceSpec) -> ServiceHost:
        return ServiceHost(
            spec,
            template=self._template,
            events=self,
            submit_many=self._submit_many,
            settings=self._encoded_settings(),
            folder=str(self._paths.runtime / "services" / spec.id),
            packages=str(self._paths.packages),
            spill=str(self._paths.spill),
            environment=self._environment,
            monotonic=self._clock.monotonic,
        )

    def _start(self, service: _Service) -> None:
        if service.task is not None and not service.task.done():
            return
        if self._tasks is None or self._ending.is_set():
            return
        service.life = self._make_life(service.spec)
        self._router.open(service.spec.id)
        service.task = self._tasks.create_task(service.life.run(), name=f"service {service.spec.id}")
        service.task.add_done_callback(lambda _: self._life_ended(service))

    def _life_ended(self, service: _Service) -> None:
        if service.life.status.state == "failed":
            self._close_mailbox(service.spec.id)

    async def _halt(self, services: Sequence[_Service], timeout_seconds: float) -> None:
        tasks = [service.task for service in services if service.task is not None and not service.task.done()]
        for service in services:
            service.life.stop(timeout_seconds)
        if tasks:
            await asyncio.wait(tasks)

    def _gone(self, spec: ServiceSpec) -> None:
        """A process has ended: its mailbox waits for the next one."""
        service = self._services[spec.id]
        if service.port is not None:
            self._router.detach(service.port.mailbox)
        service.port = None

    def _ended(self, spec: ServiceSpec, ending: Ending, delay_seconds: float | None) -> None:
        """A process ended by itself: say so, and report it."""
        if delay_seconds is None:
            sequel = "It is not started again; correct it, or start it by hand."
        else:
            sequel = f"It is started again in {delay_seconds:.1f} s."
        self.line(spec.id, "error", f"{ending.text} {sequel}")
        self._submit_fault(spec.id, ending.text, ending.details)

    def _submit_fault(self, service: str, text: str, details: str) -> None:
        payload = {
            "code": CRASH_FAULT_CODE,
            "text": text[:DETAILS_LIMIT],
            "description": details[-DETAILS_LIMIT:] or None,
        }
        submission = Submission(service=service, payload=msgspec.json.encode(payload), kind="fault")

        def stored(_sequences: list[int], error: Exception | None) -> None:
            if error is not None:
                log.error("The fault of %s could not be stored: %s", service, error)

        self._submit_many([submission], stored)

    def _close_mailbox(self, service_id: str) -> None:
        dropped = self._router.close(service_id)
        if dropped:
            self.line(service_id, "warning", f"{dropped} messages that waited for it were dropped: it does not run.")

    def _encoded_settings(self) -> msgspec.Raw:
        return msgspec.Raw(msgspec.msgpack.encode(self._settings()))

    def _warn(self, service: str, text: str) -> None:
        self.line(service, "warning", text)

    async def _take_in_late_spills(self) -> None:
        """Services of an agent that was killed may save what they have for a few seconds more."""
        await self._clock.sleep(ORPHAN_SECONDS)
        await take_in_spills(self._paths, self._submit_batch)

    async def _submit_batch(self, submissions: Sequence[Submission]) -> None:
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answered(_sequences: list[int], error: Exception | None) -> None:
            if stored.done():
                return
            if error is None:
                stored.set_result(None)
            else:
                stored.set_exception(error)

        self._submit_many(submissions, answered)
        await stored


class _Service:
    """A service of the deployment, and what belongs to its present process."""

    def __init__(self, spec: ServiceSpec, life: ServiceLife) -> None:
        self.spec = spec
        self.life = life
        self.task: asyncio.Task[None] | None = None
        self.port: Port | None = None


class _OrchestratorService:
    """The built-in service `orchestrator`: what services may ask of the node."""

    id: ClassVar[str] = "orchestrator"
    actions: ClassVar[frozenset[str]] = frozenset(("StartCustomServices", "StopCustomServices"))

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator

    async def handle(self, source: str, action: str, payload: Any) -> None:
        """Start or stop every custom service; the one that asks is not stopped."""
        for status in self._orchestrator.statuses():
            if action == "StartCustomServices":
                await self._orchestrator.start_service(status.id)
            elif status.id != source:
                await self._orchestrator.stop_service(status.id)
