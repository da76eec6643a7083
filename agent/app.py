"""The agent put together: the one composition root and the one top task group of `outstation run`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from agent import __version__
from agent.clock import Clock, SystemClock
from agent.config import AgentConfig
from agent.control import serve_control
from agent.errors import ConfigError, OutstationError, StorageError, out_of_group
from agent.exitcodes import ExitCode
from agent.hub.commands import Commands
from agent.hub.reporter import Reporter
from agent.hub.session import HubSession
from agent.identity import Identity, load_identity
from agent.instance import InstanceLock
from agent.logs import LineWriter, configure
from agent.orchestrator.deployments import Deployments
from agent.orchestrator.model import ServiceStatus
from agent.orchestrator.orchestrator import Orchestrator
from agent.orchestrator.spill import take_in_spills
from agent.outbox.limits import DAY_SECONDS, Limits
from agent.outbox.message import Submission
from agent.outbox.sinks.portal import PortalSink
from agent.outbox.sinks.runner import Sinks
from agent.outbox.store import Outbox
from agent.paths import Paths
from agent.settings import load_settings
from agent.system.notify import notify, watchdog_interval_seconds
from agent.system.pins import PinBoard
from services.com import Com
from services.logger import Logger

log = logging.getLogger(__name__)

OUTBOX_REPLACED_FAULT_CODE = "90100"
"""The outbox's file was damaged; what was in it is set aside."""


class Ending(Enum):
    """Why the agent ends."""

    STOP = "stop"
    RESTART = "restart"


def run(config: AgentConfig, paths: Paths) -> int:
    """Run the agent until SIGTERM or SIGINT; a `restart` of the portal begins anew in the same process.

    Raises NotEnrolledError, AlreadyRunningError, ConfigError or StorageError.
    """
    writer = configure(config.log_level)
    identity = load_identity(paths)
    _allow_many_files()
    with InstanceLock(paths.lock):
        while _live(Agent(config, paths, identity, writer=writer)) is Ending.RESTART:
            log.info("Starting again, as the portal asked.", extra={"action": "restart"})
    return ExitCode.OK


def _allow_many_files() -> None:
    # Each service takes three descriptors of the agent, and the usual 1024 would be gone with the 340th.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _live(agent: Agent) -> Ending:
    """One life; an error of ours that ends a task comes out as itself, for the command line to show."""
    try:
        return asyncio.run(agent.run())
    except BaseExceptionGroup as group:
        raise out_of_group(group, OutstationError) from None


class Agent:
    """One life of the agent: from its start to a stop or a restart."""

    def __init__(
        self, config: AgentConfig, paths: Paths, identity: Identity, *, writer: LineWriter, clock: Clock | None = None
    ) -> None:
        self._config = config
        self._paths = paths
        self._identity = identity
        self._writer = writer
        self._clock = clock or SystemClock()
        self._started_wall = self._clock.wall()
        self._ending: asyncio.Future[Ending] | None = None
        self.ready = asyncio.Event()
        """Set once everything that needs no network runs."""

    async def run(self) -> Ending:
        """Run until told to end; returns why."""
        loop = asyncio.get_running_loop()
        ending = self._ending = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end, Ending.STOP)
        self._make_runtime_directory()
        async with AsyncExitStack() as stack:
            environment = await self._start_pins(stack)
            outbox = await stack.enter_async_context(self._open_outbox())
            await self._compose(stack, outbox, environment)
            self.ready.set()
            notify("READY=1")
            log.info("Agent %s runs as %s.", __version__, self._identity.node_name, extra={"action": "agent_running"})
            why: Ending = await ending
            notify("STOPPING=1")
            log.info("Stopping.", extra={"action": "agent_stopping"})
        return why

    def end(self, why: Ending) -> None:
        """Ask the agent to end; the first reason counts. On the loop only."""
        if self._ending is not None and not self._ending.done():
            self._ending.set_result(why)

    async def _compose(self, stack: AsyncExitStack, outbox: Outbox, environment: dict[str, str]) -> None:
        clock, paths, identity = self._clock, self._paths, self._identity
        deployments = Deployments(paths, manifest_key=identity.manifest_key, node_id=identity.node_id)
        commands = Commands(paths, deployments, stored=load_settings(paths), restart=lambda: self.end(Ending.RESTART))
        session = HubSession(identity, clock=clock, on_signed_in=commands.signed_in)
        logger = Logger(self._writer, console=session.console, wall=clock.wall)
        reporter = Reporter(session, outbox, state=paths.state, clock=clock)
        com = Com()
        sinks = Sinks(
            outbox,
            self._config.sinks,
            portal=PortalSink(reporter.deliver_faults, connected=session.connected, clock=clock),
            node=identity.node_name,
            clock=clock,
            on_cloud_event=com.cloud_event,
            keep_without_hub=self._config.outbox.keep_without_hub,
        )

        def service_changed(status: ServiceStatus) -> None:
            reporter.service_state(status)
            com.service_state(status)

        orchestrator = Orchestrator(
            paths=paths,
            clock=clock,
            submit_many=outbox.submit_many_nowait,
            built_ins=[logger, com],
            log=logger.log,
            settings=commands.settings_for_services,
            on_state=service_changed,
            environment=environment,
            stop_timeout_seconds=self._config.stop_timeout_seconds,
        )
        com.connect(orchestrator, report=sinks.report)
        commands.connect(session, orchestrator, reporter, sinks)
        reporter.connect(orchestrator)

        await take_in_spills(paths, outbox.submit_many)
        # What the portal said last, before any sink starts, so that each starts once and with the right settings.
        commands.use_stored_settings()

        async def status(_: dict[str, Any]) -> dict[str, Any]:
            return self._status(commands, session, orchestrator, outbox, sinks)

        await stack.enter_async_context(serve_control(paths.control_socket, {"status": status}))
        tasks = await stack.enter_async_context(_cancelled_at_the_end())
        stack.push_async_callback(session.sign_out)
        tasks.start(self._feed_watchdog(), "watchdog")
        tasks.start(outbox.watch(), "outbox")
        tasks.start(sinks.run(), "sinks")
        orchestrating = tasks.start(orchestrator.run(), "orchestrator")

        async def stop_services() -> None:
            await orchestrator.stop(self._config.stop_timeout_seconds)
            await asyncio.wait([orchestrating])

        stack.push_async_callback(stop_services)
        # What was deployed last starts before, and without, any network.
        await commands.start_stored_deployment()
        tasks.start(reporter.run(), "reporter")
        tasks.start(session.run(), "hub session")
        tasks.start(commands.tidy_up(), "packages")

    def _make_runtime_directory(self) -> None:
        try:
            self._paths.runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(
                f"The runtime directory {self._paths.runtime} cannot be made: {error.strerror}; "
                "give another with --runtime-dir."
            ) from error

    @asynccontextmanager
    async def _open_outbox(self) -> AsyncIterator[Outbox]:
        config = self._config.outbox
        outbox = await Outbox.open(
            self._paths.outbox,
            node=self._identity.node_name,
            clock=self._clock,
            durability=config.durability,
            limits=Limits(bytes=config.max_bytes, age_seconds=config.max_age_days * DAY_SECONDS),
        )
        try:
            if outbox.recovered_from is not None:
                await self._tell_replaced(outbox, outbox.recovered_from)
            yield outbox
        finally:
            await outbox.close()

    async def _tell_replaced(self, outbox: Outbox, aside: Path) -> None:
        text = f"The outbox was damaged; it was set aside as {aside} and a new one was started."
        log.error("%s", text, extra={"action": "outbox_replaced"})
        fault = {"code": OUTBOX_REPLACED_FAULT_CODE, "text": text, "description": None}
        await outbox.submit(Submission(service="agent", kind="fault", payload=json.dumps(fault).encode()))

    async def _start_pins(self, stack: AsyncExitStack) -> dict[str, str]:
        """Start the board of simulated pins where they are wanted; the environment that services get."""
        mode = self._config.gpio
        if mode == "auto":
            mode = "real" if any(Path("/dev").glob("gpiochip*")) else "simulated"
        if mode == "real":
            return {}
        if importlib.util.find_spec("gpiozero") is None:
            if self._config.gpio == "simulated":
                raise ConfigError("Simulated pins need gpiozero: pip install 'outstation[gpio]'.")
            return {}
        await stack.enter_async_context(PinBoard(self._paths.pins_socket, clock=self._clock))
        return {
            "GPIOZERO_PIN_FACTORY": "outstation-simulated",
            "OUTSTATION_PINS_SOCKET": str(self._paths.pins_socket),
        }

    async def _feed_watchdog(self) -> None:
        interval = watchdog_interval_seconds()
        while interval is not None:
            notify("WATCHDOG=1")
            await self._clock.sleep(interval / 2)

    def _status(
        self, commands: Commands, session: HubSession, orchestrator: Orchestrator, outbox: Outbox, sinks: Sinks
    ) -> dict[str, Any]:
        stats = outbox.stats()
        return {
            "pid": os.getpid(),
            "since": self._started_wall,
            "node": {"name": self._identity.node_name, "id": self._identity.node_id},
            "portal": {
                "url": self._identity.portal_url,
                "connected": session.connected.is_set(),
                "since": session.since_wall,
                "last_error": session.last_error,
            },
            "deployment": {"id": commands.deployment, "error": commands.deployment_error},
            "services": [asdict(status) for status in orchestrator.statuses()],
            "outbox": msgspec.to_builtins(stats),
            "sinks": [msgspec.to_builtins(status) for status in sinks.statuses()],
        }


class _Tasks:
    """The long-lived tasks of the agent: one that dies takes the agent with it, to be started whole again."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._tasks.append(task)
        return task

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def _cancelled_at_the_end() -> AsyncIterator[_Tasks]:
    async with asyncio.TaskGroup() as group:
        tasks = _Tasks(group)
        try:
            yield tasks
        finally:
            tasks.cancel()
