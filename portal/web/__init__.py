"""The portal's pages: look, frame and components; each feature's pages stand in its own `pages.py`."""

from __future__ import annotations

import hashlib

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from nicegui import Client, ui
from nicegui import app as pages_app
from starlette.exceptions import HTTPException

from portal.web.components import Button, Tag
from portal.web.icons import FAVICON
from portal.web.shell import gate
from portal.web.theme import THEME_SCRIPT, style_sheet

_RECONNECT_SECONDS = 15.0


def mount(app: FastAPI) -> None:
    """Add all pages to `app`, below every route that it has: call it after the API's routers were included.

    The pages take `request.state.portal` for the portal. Everything that a browser loads comes from this process.
    """
    # Importing a feature's pages registers them.
    import portal.console.pages
    import portal.flows.pages
    import portal.nodes.pages
    import portal.overview.pages
    import portal.people.pages
    import portal.services.pages  # noqa: F401

    _add_look(app)
    pages_app.on_page_exception(_page_failed)
    pages_app.exception_handler(404)(_not_found)
    ui.run_with(
        app,
        title="Outstation",
        favicon=FAVICON,
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        binding_refresh_interval=None,
        reconnect_timeout=_RECONNECT_SECONDS,
    )


def _add_look(app: FastAPI) -> None:
    sheet = style_sheet()
    address = f"/assets/outstation-{hashlib.sha256(sheet.encode()).hexdigest()[:12]}.css"

    async def serve_style_sheet() -> Response:
        return Response(sheet, media_type="text/css", headers={"Cache-Control": "public, max-age=31536000, immutable"})

    app.add_api_route(address, serve_style_sheet, include_in_schema=False)
    script = THEME_SCRIPT.read_text(encoding="utf-8")
    ui.add_head_html(f'<script>{script}</script><link rel="stylesheet" href="{address}">', shared=True)


def _page_failed(error: Exception) -> None:
    with gate("This page failed", "The fault is the portal's; its log has the details."):
        Tag("p", f"{type(error).__name__}. Load the page again; if it stays, tell whoever runs this portal.")
        Button("Go to the overview", to="/")


async def _not_found(request: Request, error: Exception) -> Response:
    detail = error.detail if isinstance(error, HTTPException) else ""
    if request.url.path.startswith(("/api/", "/assets/", "/_nicegui", "/nodeHub")):
        problem = {
            "type": "about:blank",
            "title": "Not found",
            "status": 404,
            "code": "not_found",
            "detail": detail if detail and detail != "Not Found" else f"There is nothing at {request.url.path}.",
        }
        return JSONResponse(problem, status_code=404, media_type="application/problem+json")
    with Client(ui.page(""), request=request) as client:
        client.title = "Not found · Outstation"
        with gate("There is no such page", f"Nothing is at {request.url.path[:200]}."), Tag("div", "", "line"):
            Button("Go to the overview", to="/", kind="primary")
            Button("Nodes", to="/nodes")
    return client.build_response(request, 404)
