"""The portal's long-lived parts, put together once; `request.state.portal` in every handler and page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from portal.bus import Bus, LocalBus
from portal.database import Database
from portal.settings import Settings
from portal.work import Caller, Work

if TYPE_CHECKING:
    from portal.hub.service import HubService


class Portal:
    """One portal process.

    Attributes:
        settings: what the operator set.
        database: connections and transactions.
        bus: what happens, for pages and event streams.
        hub: the nodes' connections and the commands to them.
    """

    settings: Settings
    database: Database
    bus: Bus
    hub: HubService

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.sqlalchemy_url)
        self.bus = LocalBus()

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
