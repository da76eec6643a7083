"""Set-up and sign-in."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from nicegui import ui

from portal.access import caller_of, portal_of
from portal.web.components import Credentials, Tag
from portal.web.shell import gate
from portal.web.visit import safe_next

SESSION_URL = "/api/session"
SETUP_URL = "/api/setup"


@ui.page("/signin", title="Sign in · Outstation")
async def sign_in_page(request: Request, next: str = "/") -> Response | None:
    """Ask for name and password; a portal without an owner says how to set it up."""
    if await caller_of(request) is not None:
        return RedirectResponse(safe_next(next), status_code=303)
    needs_setup = await portal_of(request).accounts.needs_setup()
    if needs_setup:
        with gate("Set up this portal first", "Nobody can sign in yet: this portal has no owner."):
            Tag(
                "p",
                "Open the one-time set-up link that the portal printed when it started. It is also in the journal: "
                "journalctl -u outstation-portal.",
                "notice notice-calm",
            )
        return None
    with gate("Sign in"):
        Credentials(
            SESSION_URL,
            [
                {"name": "name", "label": "Name", "type": "text", "autocomplete": "username"},
                {"name": "password", "label": "Password", "type": "password", "autocomplete": "current-password"},
            ],
            action="Sign in",
            busy_text="Signing in…",
            after=safe_next(next),
        )
    return None


@ui.page("/setup", title="Set up · Outstation")
async def setup_page(request: Request, token: str = "") -> Response | None:
    """Create the owner with the one-time link's token, and sign in."""
    needs_setup = await portal_of(request).accounts.needs_setup()
    if not needs_setup:
        return RedirectResponse("/signin", status_code=303)
    if not token:
        with gate("Set up this portal", "The address lacks its one-time token."):
            Tag("p", "Open the whole link that the portal printed when it started.", "notice notice-warn")
        return None
    with gate("Set up this portal", "Choose who owns it. The owner can invite others later."):
        Credentials(
            SETUP_URL,
            [
                {
                    "name": "organization",
                    "label": "Organisation",
                    "type": "text",
                    "autocomplete": "organization",
                    "optional": True,
                    "hint": "Optional. What your nodes belong to; it can be changed later.",
                },
                {"name": "name", "label": "Your name", "type": "text", "autocomplete": "username"},
                {
                    "name": "password",
                    "label": "Password",
                    "type": "password",
                    "autocomplete": "new-password",
                    "hint": "At least 10 characters. A sentence is fine.",
                },
                {
                    "name": "repeated",
                    "label": "Password again",
                    "type": "password",
                    "autocomplete": "new-password",
                    "repeats": "password",
                },
            ],
            action="Create the owner and sign in",
            busy_text="Setting up…",
            after="/",
            extra={"token": token},
        )
    return None
