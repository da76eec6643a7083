"""Errors as `application/problem+json` (RFC 9457): one place, so that handlers hold no try/except."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException

from agent.errors import OutstationError
from portal.errors import PortalError, TooManyError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_TITLES = {404: "Not found", 405: "This method is not possible here", 413: "The request is too large"}
_CODES = {400: "bad_request", 401: "not_signed_in", 403: "not_allowed", 404: "not_found", 405: "method_not_allowed"}


class Problem(BaseModel):
    """What every error looks like."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="Stable; programs may rely on it.")
    detail: str = Field(description="One sentence: what, where, and what to do next.")
    field: str | None = Field(default=None, description="The field of the request that is meant.")


def problem(
    status: int, code: str, title: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any
) -> JSONResponse:
    """An error answer."""
    body = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail, **more}
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def add_error_handlers(app: FastAPI) -> None:
    """Turn every error of a handler into a problem document."""
    app.exception_handler(PortalError)(_portal_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_exception)
    app.exception_handler(IntegrityError)(_changed_meanwhile)
    app.exception_handler(OutstationError)(_internal_error)
    app.exception_handler(Exception)(_internal_error)


async def _portal_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PortalError)
    headers = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, TooManyError) else None
    more = dict(error.extra)
    if error.field is not None:
        more["field"] = error.field
    return problem(error.status, error.problem_code, error.title, error.detail, headers=headers, **more)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # What was sent is not repeated: it may hold a password.
    errors = [
        {"field": ".".join(str(part) for part in item["loc"][1:]), "message": str(item["msg"])}
        for item in error.errors()
    ]
    first = errors[0] if errors else {"field": "", "message": "The request cannot be read"}
    where = f"{first['field']}: " if first["field"] else ""
    return problem(
        422,
        "request_invalid",
        "The request is not valid",
        f"{where}{first['message']}.",
        field=first["field"] or None,
        errors=errors,
    )


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    title = _TITLES.get(error.status_code, "The request cannot be carried out")
    code = "body_too_large" if error.status_code == 413 else _CODES.get(error.status_code, "bad_request")
    detail = str(error.detail)
    if error.status_code == 404 and detail == "Not Found":
        detail = f"There is nothing at {request.url.path[:200]}."
    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, code, title, detail, headers=headers)


async def _changed_meanwhile(request: Request, error: Exception) -> JSONResponse:
    # What the services check first, the database checks again at the commit.
    return problem(
        409,
        "changed_meanwhile",
        "This does not fit what is there",
        "Somebody else changed the same thing at the same moment; look at it again and repeat.",
    )


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed.", request.method, request.url.path, exc_info=error, extra={"action": "request_failed"})
    return problem(
        500, "internal_error", "The portal has a fault", "The portal has a fault; its log has the details. Try again."
    )
