"""What can be done with people."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from pydantic import SecretStr

from portal.errors import InvalidError, NotAllowedError, NotSignedInError, TooManyError
from portal.people.models import Person, PersonSession, SetupToken
from portal.people.repository import PeopleRepository
from portal.people.throttle import Throttle, network_of
from portal.people.views import OpenedSession, PersonView, SetupForm, SignInForm
from portal.vault import hash_token
from portal.views import Role
from portal.work import Caller, Work

if TYPE_CHECKING:
    from portal.portal import Portal

SESSION_IDLE = timedelta(days=7)
SESSION_LONGEST = timedelta(days=30)
SESSION_TOUCH = timedelta(minutes=5)
ATTEMPTS_LIMIT = 32
"""People who may sign in at the same moment; each password takes a tenth of a second to check."""
PASSWORD_SHORTEST = 10
PASSWORD_LONGEST = 1000
"""Longer ones only cost time; the hash takes any length."""


class PeopleService:
    """The people of the caller's organisation."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._people = PeopleRepository(work.session)

    async def needs_setup(self) -> bool:
        """Whether no owner exists yet."""
        return await self._work.portal.accounts.needs_setup()

    async def caller_of(self, token: SecretStr) -> Caller | None:
        """Who holds this session token; None when it is not valid (any more)."""
        return await self._work.portal.accounts.caller_of(token)

    async def me(self) -> PersonView:
        """The caller."""
        caller = self._work.caller
        person = await self._people.by_id(caller.organization_id, caller.person_id or "")
        if person is None:
            raise NotSignedInError("Your account does not exist any more; ask an owner.")
        return await self.view(person)

    async def view(self, person: Person) -> PersonView:
        """A person as shown."""
        return PersonView(
            id=person.id,
            name=person.name,
            role=cast("Role", person.role),
            organization_id=person.organization_id,
            organization_name=await self._people.organization_name(person.organization_id),
            created_at=person.created_at,
        )


class Accounts:
    """Set-up and sign-in: what happens before there is a caller.

    Checking a password takes a tenth of a second on purpose. It happens in a thread and outside transactions, at most
    two at a time and with a bounded queue, so that guessing costs the rest of the portal nothing.
    """

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._throttle = Throttle(portal.clock)
        self._hasher = PasswordHasher()
        self._unknown_hash: str | None = None
        self._slots = asyncio.Semaphore(2)
        self._attempts = 0

    async def needs_setup(self) -> bool:
        """Whether no owner exists yet."""
        async with self._portal.database.reading() as session:
            return not await PeopleRepository(session).has_owner(self._portal.organization_id)

    async def new_setup_token(self) -> str | None:
        """Make a new one-time set-up token, invalidating earlier ones; None when an owner exists."""
        async with self._portal.database.writing() as session:
            people = PeopleRepository(session)
            if await people.has_owner(self._portal.organization_id):
                return None
            await people.delete_setup_tokens(self._portal.organization_id)
            token = secrets.token_urlsafe(32)
            people.add(
                SetupToken(
                    token_hash=hash_token(token),
                    organization_id=self._portal.organization_id,
                    created_at=self._portal.now(),
                )
            )
            return token

    async def set_up(self, form: SetupForm, *, address: str, user_agent: str) -> OpenedSession:
        """Create the owner and open a session.

        Raises NotAllowedError (`setup_token_invalid`), InvalidError (`password_too_short`), TooManyError.
        """
        with self._attempt("setup", network_of(address)):
            _check_password(form.password)
            password_hash = await self._hash(form.password)
            async with self._portal.writing(None) as work:
                people = PeopleRepository(work.session)
                token = await people.setup_token(hash_token(form.token))
                if token is None or await people.has_owner(token.organization_id):
                    raise NotAllowedError(
                        "This set-up link is not valid (any more). Restart the portal or run "
                        "`outstation portal setup-link` for a new one; with an owner in place, sign in instead.",
                        code="setup_token_invalid",
                    )
                await people.delete_setup_tokens(token.organization_id)
                person = Person(
                    id=str(uuid.uuid4()),
                    organization_id=token.organization_id,
                    name=form.name,
                    name_key=form.name.casefold(),
                    password_hash=password_hash,
                    role="owner",
                    enabled=True,
                    created_at=self._portal.now(),
                )
                people.add(person)
                await work.session.flush()
                if form.organization:
                    await work.organizations.rename(token.organization_id, form.organization)
                return await self._open(work, person, address, user_agent)

    async def sign_in(self, form: SignInForm, *, address: str, user_agent: str) -> OpenedSession:
        """Open a session. Raises NotSignedInError (`sign_in_failed`), TooManyError."""
        with self._attempt("person", form.name.casefold(), network_of(address)):
            async with self._portal.database.reading() as session:
                person = await PeopleRepository(session).by_name(self._portal.organization_id, form.name.casefold())
            good = await self._verify(form.password, person.password_hash if person else await self._hash_of_nobody())
            if person is None or not person.enabled or not good:
                raise NotSignedInError(
                    "Name or password is wrong. After several failures each attempt has to wait longer.",
                    code="sign_in_failed",
                )
            async with self._portal.writing(None) as work:
                return await self._open(work, person, address, user_agent)

    async def sign_out(self, token: SecretStr) -> None:
        """End a session; an unknown one is none already."""
        async with self._portal.database.writing() as session:
            await PeopleRepository(session).delete_session(hash_token(token.get_secret_value()))

    async def caller_of(self, token: SecretStr) -> Caller | None:
        """Who holds this session token; None when it is not valid (any more)."""
        token_hash = hash_token(token.get_secret_value())
        async with self._portal.database.reading() as session:
            found = await PeopleRepository(session).session_and_person(token_hash)
        if found is None:
            return None
        person_session, person = found
        now = self._portal.now()
        ends_at = min(person_session.seen_at + SESSION_IDLE, person_session.created_at + SESSION_LONGEST)
        if not person.enabled or ends_at < now:
            return None
        if person_session.seen_at + SESSION_TOUCH < now:
            async with self._portal.database.writing() as session:
                await PeopleRepository(session).touch_session(token_hash, now)
        return Caller(person.organization_id, person.name, cast("Role", person.role), person.id)

    async def forget_idle_sessions(self) -> None:
        """Delete sessions that have ended by themselves."""
        now = self._portal.now()
        async with self._portal.database.writing() as session:
            await PeopleRepository(session).delete_sessions_before(now - SESSION_IDLE, opened=now - SESSION_LONGEST)

    async def _open(self, work: Work, person: Person, address: str, user_agent: str) -> OpenedSession:
        token = secrets.token_urlsafe(32)
        now: datetime = self._portal.now()
        PeopleRepository(work.session).add(
            PersonSession(
                token_hash=hash_token(token),
                person_id=person.id,
                created_at=now,
                seen_at=now,
                address=address[:64],
                user_agent=user_agent[:200],
            )
        )
        return OpenedSession(token=SecretStr(token), person=await work.people.view(person))

    @contextmanager
    def _attempt(self, *key: str) -> Iterator[None]:
        """One attempt, throttled by `key`, which succeeds unless an exception leaves it. Raises TooManyError."""
        # Before the throttle counts: a flood of made-up names would push the counts of real ones out of it.
        if self._attempts >= ATTEMPTS_LIMIT:
            raise TooManyError("Too many people sign in at this moment; try again in 2 s.", retry_after_seconds=2)
        self._throttle.begin(*key)
        self._attempts += 1
        try:
            yield
        finally:
            self._attempts -= 1
        self._throttle.succeeded(*key)

    async def _hash(self, password: SecretStr) -> str:
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password.get_secret_value())

    async def _verify(self, password: SecretStr, password_hash: str) -> bool:
        async with self._slots:
            return await asyncio.to_thread(_verify, self._hasher, password_hash, password.get_secret_value())

    async def _hash_of_nobody(self) -> str:
        # An unknown name takes as long as a wrong password, so that names cannot be found out.
        if self._unknown_hash is None:
            self._unknown_hash = await self._hash(SecretStr(secrets.token_urlsafe(16)))
        return self._unknown_hash


def _verify(hasher: PasswordHasher, password_hash: str, password: str) -> bool:
    try:
        return hasher.verify(password_hash, password[:PASSWORD_LONGEST])
    except (VerifyMismatchError, InvalidHashError):
        return False


def _check_password(password: SecretStr) -> None:
    length = len(password.get_secret_value())
    if length < PASSWORD_SHORTEST:
        raise InvalidError(
            f"The password has {length} characters; use at least {PASSWORD_SHORTEST}. A sentence is good.",
            code="password_too_short",
            field="password",
        )
    if length > PASSWORD_LONGEST:
        raise InvalidError(
            f"The password is longer than {PASSWORD_LONGEST} characters; use a shorter one.",
            code="password_too_long",
            field="password",
        )
