"""Set-up, sign-in, sign-out, and who I am."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import SecretStr

from portal.access import SESSION_COOKIE, Public, ViewerReads, address_of, portal_of
from portal.people.service import SESSION_LONGEST
from portal.people.views import OpenedSession, PersonView, SetupForm, SignInForm

router = APIRouter(tags=["people"])


@router.post("/setup", status_code=201)
async def set_up(portal: Public, form: SetupForm, request: Request, response: Response) -> PersonView:
    """Create the owner with the token of the one-time set-up link, and sign in."""
    opened = await portal.accounts.set_up(form, address=address_of(request), user_agent=_user_agent(request))
    return _with_cookie(request, response, opened)


@router.post("/session", status_code=201)
async def sign_in(portal: Public, form: SignInForm, request: Request, response: Response) -> PersonView:
    """Sign in. The session is a cookie that scripts cannot read; it ends after seven days without use, or after 30."""
    opened = await portal.accounts.sign_in(form, address=address_of(request), user_agent=_user_agent(request))
    return _with_cookie(request, response, opened)


@router.delete("/session", status_code=204)
async def sign_out(portal: Public, request: Request, response: Response) -> None:
    """Sign out; without a session nothing happens."""
    if token := request.cookies.get(SESSION_COOKIE):
        await portal.accounts.sign_out(SecretStr(token))
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict", secure=_secure(request))


@router.get("/me")
async def me(work: ViewerReads) -> PersonView:
    """Who is signed in."""
    return await work.people.me()


def _with_cookie(request: Request, response: Response, opened: OpenedSession) -> PersonView:
    response.set_cookie(
        SESSION_COOKIE,
        opened.token.get_secret_value(),
        max_age=int(SESSION_LONGEST.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=_secure(request),
    )
    return opened.person


def _secure(request: Request) -> bool:
    return request.url.scheme == "https" or portal_of(request).url.startswith("https://")


def _user_agent(request: Request) -> str:
    return request.headers.get("user-agent", "")
