"""The portal's long-lived parts, put together once; `request.state.portal` in every handler and page."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.exc import DBAPIError

from agent.clock import Clock, SystemClock
from agent.errors import OutstationError
from agent.system.notify import notify, watchdog_interval_seconds
from portal.bus import Bus, LocalBus
from portal.console.service import ConsoleBook
from portal.database import Database
from portal.flows.plan import Plans
from portal.history.service import HistoryService
from portal.hub.limits import HubLimits
from portal.hub.service import HubService
from portal.migrations import migrate
from portal.nodes.repository import NodeRepository
from portal.organizations.service import ensure_organization
from portal.people.service import Accounts
from portal.services.library import load_library
from portal.settings import Settings
from portal.vault import Vault
from portal.work import Caller, Work

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 30.0
KEEP_CODES = timedelta(days=7)
KEEP_ANNOUNCEMENTS = timedelta(days=30)


class Portal:
    """One portal process.

    Attributes:
        settings: what the operator set.
        database: connections and transactions.
        bus: what happens, for pages and event streams.
        hub: the nodes' connections and the commands to them.
        accounts: set-up and sign-in.
        plans: which services which node runs.
        history: how much of timelines, faults and tracking is kept.
        console_book: the last console lines.
        library: the ready services, by name.
        fingerprint: SHA-256 of the portal's certificate when it is self-made.
        setup_url: the one-time set-up link while there is no owner.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        fingerprint: str | None = None,
        hub_limits: HubLimits | None = None,
    ) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.fingerprint = fingerprint
        self.vault = Vault.open(settings.data)
        self.library = load_library()
        self.database = Database(settings.sqlalchemy_url)
        self.bus: Bus = LocalBus()
        self.plans = Plans(self.database, self.vault)
        self.console_book = ConsoleBook(self.bus)
        self.accounts = Accounts(self)
        self.history = HistoryService(self.database, keep=timedelta(days=settings.retention_days))
        self.hub = HubService(self, hub_limits or HubLimits())
        self.organization_id = ""
        self.setup_url: str | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """How browsers and nodes reach the portal."""
        return self.settings.url()

    def listening_on(self, port: int) -> None:
        """Say which port was really taken."""
        self.settings = replace(self.settings, port=port)

    def now(self) -> datetime:
        """The time, with its zone."""
        return datetime.fromtimestamp(self.clock.wall(), UTC)

    def enrol_command(self, code: str) -> str:
        """What to paste on a node."""
        command = f"outstation enroll {self.url} --code {code}"
        if self.fingerprint is not None:
            command += f" --fingerprint {self.fingerprint}"
        elif self.url.startswith("http://") and not _is_loopback(urlsplit(self.url).hostname or ""):
            command += " --insecure-http"
        return command

    @asynccontextmanager
    async def reading(self, caller: Caller | None) -> AsyncIterator[Work]:
        """Work that changes nothing."""
        async with self.database.reading() as session:
            yield Work(self, session, caller)

    @asynccontextmanager
    async def writing(self, caller: Caller | None) -> AsyncIterator[Work]:
        """Work whose changes are stored together at its end, or not at all when an exception leaves it."""
        async with self.database.writing() as session:
            work = Work(self, session, caller)
            yield work
        work.committed()

    def assignments_changed(self, organization_id: str) -> None:
        """Flows or services were changed and stored: nodes are told what that means for them."""
        self.plans.changed()
        self.hub.refresh_organization(organization_id)

    async def prepare(self) -> None:
        """Bring the database up to date. Raises StorageError, ConfigError."""
        try:
            await asyncio.to_thread(migrate, self.database.url, self._tell_progress)
            self.organization_id = await ensure_organization(self)
        except OutstationError:
            await self.database.close()
            raise

    async def start(self) -> None:
        """Prepare, and begin the work in the background; a second call does nothing."""
        if self._tasks:
            return
        await self.prepare()
        await self.hub.nobody_is_online("The portal did not run; whether the node did is unknown.")
        token = await self.accounts.new_setup_token()
        self.setup_url = f"{self.url}/setup?token={token}" if token else None
        self._background(self.hub.refresh_forever, "hub refresh")
        self._background(self._keep_house, "housekeeping")
        if (interval := watchdog_interval_seconds()) is not None:
            self._background(lambda: self._feed_watchdog(interval), "watchdog")

    def begin_stop(self) -> None:
        """End what would hold up the end of the server: event streams, pages that watch, nodes' connections."""
        self.bus.close()
        self.hub.close("The portal is being stopped; it comes back.")

    async def stop(self) -> None:
        """End the work in the background and close the database."""
        self.begin_stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.hub.nobody_is_online("The portal was stopped.")
        await self.database.close()

    async def sweep(self) -> None:
        """Switch consoles off whose time is over, and forget what has expired."""
        now = self.now()
        async with self.writing(None) as work:
            nodes = NodeRepository(work.session)
            ended = [node.id for node in await nodes.consoles_ended(now)]
            for node in await nodes.by_ids(ended):
                node.console = False
                node.console_until = None
                nodes.record(node, now, "changed", "The console switched itself off.")
            await nodes.delete_codes_before(now - KEEP_CODES)
            await nodes.delete_announcements_before(now - KEEP_ANNOUNCEMENTS)
            work.after_commit(lambda: self.hub.refresh(ended))
        await self.accounts.forget_idle_sessions()
        await self.history.trim(now)

    async def _keep_house(self) -> None:
        while True:
            await self.clock.sleep(HOUSEKEEPING_SECONDS)
            try:
                await self.sweep()
            except DBAPIError as error:
                # A full disk, a database that restarts: the next round does what this one did not.
                log.error("The housekeeping was not done: %s", error.orig, extra={"action": "housekeeping_failed"})

    async def _feed_watchdog(self, interval_seconds: float) -> None:
        while True:
            notify("WATCHDOG=1")
            await asyncio.sleep(interval_seconds)

    def _background(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        task = asyncio.create_task(work(), name=name)
        task.add_done_callback(_report_end)
        self._tasks.append(task)

    def _tell_progress(self, text: str) -> None:
        log.info("%s", text, extra={"action": "migrate"})


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("The portal's %s ended: %s", task.get_name(), error, exc_info=error, extra={"action": "task_died"})


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
