"""The frame of every page, and the decorator that makes one: sign-in, title, menu, errors."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from nicegui import ui

from portal.errors import NotSignedInError, PortalError
from portal.web.components import Button, Dialog, Drawing, Tag, ThemeSwitch, tell
from portal.web.icons import BRAND, icon
from portal.web.visit import Visit, sign_in_address

MENU: tuple[tuple[str, str, str], ...] = (
    ("overview", "Overview", "/"),
    ("nodes", "Nodes", "/nodes"),
    ("services", "Services", "/services"),
    ("flows", "Flows", "/flows"),
    ("console", "Console", "/console"),
)
SIGN_OUT = (
    "() => fetch('/api/session', {method: 'DELETE', headers: {'X-Requested-With': 'outstation'}})"
    ".finally(() => location.assign('/signin'))"
)
BUILD_TIMEOUT_SECONDS = 15.0

Builder = Callable[..., Awaitable[None]]


def page(path: str, *, title: str, section: str) -> Callable[[Builder], Builder]:
    """Make `async def build(visit, …path parameters)` a page of the portal.

    Args:
        path: its address, with path parameters in braces.
        title: of the browser tab, until the page sets another.
        section: the menu entry that is marked.

    Nobody signed in: the sign-in page, which comes back. A PortalError while building: its text in the frame, with
    its status.
    """

    def decorate(build: Builder) -> Builder:
        parameters = list(inspect.signature(build, eval_str=True).parameters.values())[1:]

        async def serve(request: Request, **arguments: Any) -> Response | None:
            try:
                visit = await Visit.begin(request)
                if visit is None:
                    return RedirectResponse(sign_in_address(_address(request)), status_code=303)
                with frame(visit, section):
                    await _build(build, visit, arguments)
            except NotSignedInError:
                return RedirectResponse(sign_in_address(_address(request)), status_code=303)
            return None

        request_parameter = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Request)
        serve.__signature__ = inspect.Signature([request_parameter, *parameters])  # type: ignore[attr-defined]
        serve.__name__ = build.__name__
        ui.page(path, title=f"{title} · Outstation", response_timeout=BUILD_TIMEOUT_SECONDS)(serve)
        return build

    return decorate


async def _build(build: Builder, visit: Visit, arguments: dict[str, Any]) -> None:
    try:
        await build(visit, **arguments)
    except NotSignedInError:
        raise
    except PortalError as error:
        ui.context.client.status_code = error.status
        ui.context.slot.parent.clear()
        trouble(error.title, error.detail)


def _address(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


@contextmanager
def frame(visit: Visit, section: str) -> Iterator[None]:
    """Menu, account and the place for a page's own content; a fault of the portal is told, and logged."""
    ui.on_exception(lambda: tell("That failed. The fault is the portal's; its log has the details.", fault=True))
    Tag("a", "Skip to the content", "skip", href="#main")
    with Tag("div", "", "shell"):
        with Tag("header", "", "topbar"):
            brand()
            Button("Account", lambda: _account(visit), kind="plain", drawing="person", bare=True)
        with Tag("div", "", "rail"):
            brand()
            with Tag("nav", "", "menu", aria_label="Main"):
                for name, label, address in MENU:
                    with Tag("a", "", "menu-item", href=address) as entry:
                        Drawing(icon(name))
                        Tag("span", label)
                    if name == section:
                        entry.set(aria_current="page")
            with Tag("div", "", "rail-foot"):
                with Tag("div", "", "menu"):
                    _links()
                with Tag("div", "", "line"):
                    ThemeSwitch()
                with Tag("div", "", "who"):
                    Tag("div", visit.caller.name, "who-name clip")
                    Tag("div", visit.caller.role, "muted small")
        with Tag("main", "", "main", id="main", tabindex="-1"):
            yield


def _links() -> None:
    with Tag("a", "", "menu-item", href="/api/docs", target="_blank"):
        Drawing(icon("book"))
        Tag("span", "API")
    with Tag("button", "", "menu-item", type="button").on("click", js_handler=SIGN_OUT):
        Drawing(icon("leave"))
        Tag("span", "Sign out")


def _account(visit: Visit) -> None:
    dialog = Dialog("Account")
    with dialog.body:
        with Tag("div"):
            Tag("div", visit.caller.name, "who-name")
            Tag("div", visit.caller.role, "muted small")
        with Tag("div", "", "stack stack-tight"):
            Tag("div", "Colour theme", "field-label")
            ThemeSwitch()
        with Tag("div", "", "stack stack-tight"):
            Button("API", to="/api/docs", drawing="book", target="_blank")
            Button("Sign out", drawing="leave").on("click", js_handler=SIGN_OUT)
    dialog.open()


def brand() -> None:
    """Mark and name, which lead to the overview."""
    with Tag("a", "", "brand", href="/"):
        Drawing(BRAND)
        Tag("span", "Outstation")


@dataclass(frozen=True, slots=True)
class PageHead:
    """A page's title, and the line below it."""

    heading: Tag
    under: Tag


@contextmanager
def page_head(title: str, *, crumb: tuple[str, str] | None = None, lead: str = "") -> Iterator[PageHead]:
    """A page's title; what is made inside are its buttons, at the right or, on a phone, below.

    Args:
        crumb: label and address of the list that the page belongs to.
        lead: one line below the title.
    """
    with Tag("div", "", "pagehead"):
        with Tag("div", "", "pagehead-text"):
            if crumb:
                with Tag("div", "", "crumb"):
                    Tag("a", crumb[0], "link", href=crumb[1])
            heading = Tag("h1", title)
            if lead:
                Tag("p", lead, "muted")
            under = Tag("div", "", "line")
        with Tag("div", "", "pagehead-acts"):
            yield PageHead(heading, under)


@contextmanager
def gate(title: str, lead: str = "") -> Iterator[None]:
    """A page outside the frame: sign-in, set-up, errors."""
    with Tag("main", "", "gate", id="main"):
        brand()
        with Tag("div", "", "stack stack-tight"):
            Tag("h1", title)
            if lead:
                Tag("p", lead, "muted")
        yield


def trouble(title: str, detail: str) -> None:
    """An error inside the frame, with a way on."""
    with page_head(title):
        pass
    with Tag("div", "", "panel"), Tag("div", "", "empty"):
        Tag("p", detail)
        Button("Go to the overview", to="/")
