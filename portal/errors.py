"""What the portal refuses, as one tree; each has a stable `code` and an HTTP status.

OutstationError
└── PortalError (400 bad_request)
    ├── NotSignedInError (401 not_signed_in)
    ├── NotAllowedError (403 not_allowed)
    ├── NotFoundError (404 <what>_not_found)
    ├── ConflictError (409, its own code)
    ├── InvalidError (422, its own code; may name the field)
    ├── TooManyError (429 too_many_attempts; carries seconds to wait)
    └── NodeSilentError (504 node_no_answer)
"""

from __future__ import annotations

from agent.errors import OutstationError


class PortalError(OutstationError):
    """A request was refused; nothing that was stored has changed.

    Args:
        detail: one sentence: what, where, and what to do next.
        code: stable name for programs; the class's own by default.
        field: the field of the request that is meant, when there is one.
        extra: more members of the problem document, for example the line of a syntax error.
    """

    status: int = 400
    code = "bad_request"
    title: str = "The request cannot be carried out"

    def __init__(
        self, detail: str, *, code: str | None = None, field: str | None = None, extra: dict[str, object] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.problem_code = code or type(self).code
        self.field = field
        self.extra = extra or {}


class NotSignedInError(PortalError):
    """There is no valid session."""

    status = 401
    code = "not_signed_in"
    title = "Sign in first"


class NotAllowedError(PortalError):
    """The caller's role, or where the request came from, does not allow this."""

    status = 403
    code = "not_allowed"
    title = "Not allowed"


class NotFoundError(PortalError):
    """There is no such thing in the caller's organisation."""

    status = 404
    code = "not_found"
    title = "Not found"


class ConflictError(PortalError):
    """What is asked does not fit what is there: a taken name, a node that is offline, a service in use."""

    status = 409
    code = "conflict"
    title = "This does not fit what is there"


class InvalidError(PortalError):
    """A value is not valid."""

    status = 422
    code = "request_invalid"
    title = "A value is not valid"


class TooManyError(PortalError):
    """Too many attempts; `retry_after_seconds` says when the next one is looked at."""

    status = 429
    code = "too_many_attempts"
    title = "Too many attempts"

    def __init__(self, detail: str, *, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class NodeSilentError(PortalError):
    """A connected node did not answer a command in time."""

    status = 504
    code = "node_no_answer"
    title = "The node did not answer"
