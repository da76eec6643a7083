"""One browser tab's visit: who is signed in, work in their name, and what happens while they look."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ParamSpec
from urllib.parse import quote

from fastapi import Request
from nicegui import background_tasks, ui
from nicegui.client import Client
from pydantic import SecretStr, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from portal.access import SESSION_COOKIE, caller_of, portal_of
from portal.bus import Event, Subscription
from portal.errors import NotSignedInError, PortalError
from portal.portal import Portal
from portal.views import Role
from portal.web.components import tell
from portal.work import Caller, Work

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.15
"""Events that come this close together are shown together."""
PACE_SECONDS = 1.0
RECHECK_SECONDS = 60.0
"""A page that only listens looks this often whether its session still holds."""
_RANK: dict[Role, int] = {"viewer": 0, "operator": 1, "owner": 2}

Arguments = ParamSpec("Arguments")


class Visit:
    """A signed-in person on one page.

    Attributes:
        portal: the portal that serves the page.
        caller: who is signed in, as of when the page was opened; `reading` and `writing` look again.
        address: the page's path, to come back to after signing in.
    """

    def __init__(self, portal: Portal, caller: Caller, token: SecretStr, address: str) -> None:
        self.portal = portal
        self.caller = caller
        self.address = address
        self._token = token
        self._checked_at = time.monotonic()

    @classmethod
    async def begin(cls, request: Request) -> Visit | None:
        """The visit of whoever the session cookie names; None when nobody is signed in."""
        caller = await caller_of(request)
        if caller is None:
            return None
        address = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return cls(portal_of(request), caller, SecretStr(request.cookies[SESSION_COOKIE]), address)

    def may(self, role: Role) -> bool:
        """Whether the person has this role or a higher one; what they may not do is not offered."""
        return _RANK[self.caller.role] >= _RANK[role]

    async def caller_now(self) -> Caller:
        """Who is signed in now. Raises NotSignedInError when the session has ended since the page was opened."""
        caller = await self.portal.accounts.caller_of(self._token)
        if caller is None:
            raise NotSignedInError("Your session has ended; sign in again.")
        self._checked_at = time.monotonic()
        self.caller = caller
        return caller

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Work]:
        """Work that changes nothing, in the name of the person."""
        caller = await self.caller_now()
        async with self.portal.reading(caller) as work:
            yield work

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Work]:
        """Work whose changes are stored together, in the name of the person."""
        caller = await self.caller_now()
        async with self.portal.writing(caller) as work:
            yield work

    async def watch(
        self, *topics: str, then: Callable[[Sequence[Event]], Awaitable[None]], pace_seconds: float = PACE_SECONDS
    ) -> Callable[[], None]:
        """Call `then` with what happens from now on; events that come together come as one call.

        The first event is shown at once; while they keep coming, the calls are `pace_seconds` apart (default 1), so
        that a large fleet costs a page no more than a small one. It ends when the tab is closed, or when what this
        returns is called.
        """
        client = ui.context.client
        subscription = self.portal.bus.subscribe(*topics)
        opened: AbstractAsyncContextManager[Subscription] = subscription
        events = await opened.__aenter__()
        task = background_tasks.create(
            self._follow(client, events, opened, then, pace_seconds), name=f"watch {self.address}"
        )
        client.on_delete(lambda: _end(task))
        return lambda: _end(task)

    async def _follow(
        self,
        client: Client,
        events: Subscription,
        opened: AbstractAsyncContextManager[Subscription],
        then: Callable[[Sequence[Event]], Awaitable[None]],
        pace_seconds: float,
    ) -> None:
        earliest = 0.0
        try:
            while (first := await events.next()) is not None:
                batch = [first]
                until = max(time.monotonic() + GATHER_SECONDS, earliest)
                while (left := until - time.monotonic()) > 0:
                    try:
                        event = await events.next(left)
                    except TimeoutError:
                        break
                    if event is None:
                        break
                    batch.append(event)
                with client:
                    await self._show(then, batch)
                earliest = time.monotonic() + pace_seconds
        finally:
            await opened.__aexit__(None, None, None)

    async def _show(self, then: Callable[[Sequence[Event]], Awaitable[None]], batch: Sequence[Event]) -> None:
        try:
            if time.monotonic() - self._checked_at > RECHECK_SECONDS:
                await self.caller_now()
            await then(batch)
        except PortalError as error:
            self.report(error)
        except SQLAlchemyError:
            # A busy or restarting database: the page says so, and the next event is shown again.
            log.exception("%s could not be brought up to date.", self.address, extra={"action": "page_stale"})
            tell("The portal's database did not answer; what you see may be old.", fault=True)

    def acting(self, action: Callable[Arguments, Awaitable[None]]) -> Callable[Arguments, Awaitable[None]]:
        """Wrap an event handler: what is refused is told in its own words; an ended session asks to sign in."""

        async def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            try:
                await action(*args, **kwargs)
            except PortalError as error:
                self.report(error)
            except ValidationError as error:
                tell(first_problem(error), fault=True)

        return guarded

    def report(self, error: PortalError) -> None:
        """Tell what was refused."""
        if isinstance(error, NotSignedInError):
            ui.navigate.to(sign_in_address(self.address))
        else:
            tell(error.detail, fault=True)


def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()


def sign_in_address(back_to: str) -> str:
    """The sign-in page that returns to `back_to`, a path of this portal."""
    return "/signin" if back_to == "/" else f"/signin?next={quote(back_to)}"


def safe_next(address: str) -> str:
    """`address` if it is a path of this portal, else the overview: a link must not lead away after signing in."""
    # Browsers leave control characters out of an address before they read it, and take a backslash for a slash.
    if address.isprintable() and address.startswith("/") and not address.startswith(("//", "/\\")):
        return address
    return "/"


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a form, as one sentence that names the field."""
    problem: dict[str, Any] = dict(error.errors()[0])
    field = " ".join(str(part).replace("_", " ") for part in problem["loc"]) or "The value"
    return f"{field[:1].upper()}{field[1:]}: {problem['msg'][:1].lower()}{problem['msg'][1:]}."
