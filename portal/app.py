"""The web application, put together: API, node hub, pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from agent import __version__
from agent.clock import Clock
from portal.access import Public
from portal.apidocs import router as docs_router
from portal.console.api import router as console_router
from portal.errors import NotFoundError
from portal.faults.api import router as faults_router
from portal.flows.api import router as flows_router
from portal.guard import Guard
from portal.hub.api import router as hub_router
from portal.hub.limits import HubLimits
from portal.nodes.api import router as nodes_router
from portal.organizations.api import router as organizations_router
from portal.people.api import router as people_router
from portal.portal import Portal
from portal.problems import MEDIA_TYPE, Problem, add_error_handlers
from portal.services.api import router as services_router
from portal.settings import Settings
from portal.tracking.api import router as tracking_router

_DESCRIPTION = """
Everything that the pages can do. Sign in with `POST /api/session`; the session is a cookie. Errors are
`application/problem+json` with a stable `code`. Lists come in parts: `limit`, and `after` with the `next` of the
previous part. Send JSON.
"""

health_router = APIRouter(tags=["health"])


class Health(BaseModel):
    """Whether the portal works."""

    status: str = "ok"
    version: str = __version__


@health_router.get("/health")
async def health(portal: Public) -> Health:
    """Whether the portal runs and its database answers."""
    await portal.accounts.needs_setup()
    return Health()


_nothing_here = APIRouter(include_in_schema=False)


@_nothing_here.api_route("/api/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
async def nothing_here(path: str) -> None:
    """Answer unknown API addresses as the API answers, not as a page."""
    raise NotFoundError(f"There is nothing at /api/{path[:200]}; see /api/docs.")


def create_app(
    settings: Settings,
    *,
    clock: Clock | None = None,
    fingerprint: str | None = None,
    hub_limits: HubLimits | None = None,
    pages: Callable[[FastAPI], None] | None = None,
) -> FastAPI:
    """Put the portal together.

    Args:
        settings: what the operator set.
        clock: where time comes from (default: the machine's).
        fingerprint: SHA-256 of the self-made certificate that it is served with.
        hub_limits: other bounds for nodes' connections; for tests.
        pages: adds the pages (default: `portal.web.mount`); a function that does nothing leaves them out.

    Raises StorageError or ConfigError when the data folder cannot be used. Blocks; nothing is listened on yet.
    """
    portal = Portal(settings, clock=clock, fingerprint=fingerprint, hub_limits=hub_limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await portal.start()
        try:
            yield
        finally:
            await portal.stop()

    app = FastAPI(
        title="Outstation portal",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses=_problem_responses(),
    )
    app.state.portal = portal
    app.add_middleware(Guard, portal=portal)
    add_error_handlers(app)
    app.include_router(hub_router)
    for router in (
        health_router,
        people_router,
        organizations_router,
        nodes_router,
        services_router,
        flows_router,
        console_router,
        faults_router,
        tracking_router,
    ):
        app.include_router(router, prefix="/api")
    app.include_router(docs_router)
    app.include_router(_nothing_here)
    (pages or _mount_pages)(app)
    return app


def portal_of_app(app: FastAPI) -> Portal:
    """The portal of an application that `create_app` made."""
    portal: Portal = app.state.portal
    return portal


def _mount_pages(app: FastAPI) -> None:
    from portal.web import mount

    mount(app)


def _problem_responses() -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {"default": {"description": "An error.", "content": content}}
