"""What can be done with people."""

from __future__ import annotations

from pydantic import SecretStr

from portal.people.views import OpenedSession, PersonView, SetupForm, SignInForm
from portal.work import Caller, Work


class PeopleService:
    """Set-up, sign-in and sessions."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def needs_setup(self) -> bool:
        """Whether no owner exists yet."""
        raise NotImplementedError

    async def set_up(self, form: SetupForm, *, address: str, user_agent: str) -> OpenedSession:
        """Create the owner and sign in. Raises NotAllowedError (`setup_token_invalid`), InvalidError (`password_too_short`)."""
        raise NotImplementedError

    async def sign_in(self, form: SignInForm, *, address: str, user_agent: str) -> OpenedSession:
        """Open a session. Raises NotSignedInError (`sign_in_failed`), TooManyError."""
        raise NotImplementedError

    async def sign_out(self, token: SecretStr) -> None:
        """End a session."""
        raise NotImplementedError

    async def caller_of(self, token: SecretStr) -> Caller | None:
        """Who holds this session token; None when it is not valid (any more)."""
        raise NotImplementedError

    async def me(self) -> PersonView:
        """The caller."""
        raise NotImplementedError
