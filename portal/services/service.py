"""What can be done with services."""

from __future__ import annotations

import builtins

from portal.services.views import (
    CheckResult,
    LibraryEntry,
    ServiceChange,
    ServiceDetail,
    ServiceForm,
    ServiceSource,
    ServiceView,
    SourceForm,
    VersionForm,
)
from portal.views import Page
from portal.work import Work


class ScriptService:
    """The organisation's services and the library."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def list(self, *, search: str = "", limit: int = 100, after: str | None = None) -> Page[ServiceView]:
        """Services by id."""
        raise NotImplementedError

    async def get(self, service_id: str) -> ServiceDetail:
        """One service. Raises NotFoundError."""
        raise NotImplementedError

    async def create(self, form: ServiceForm) -> ServiceDetail:
        """Make a service, version 0.1. Raises ConflictError (`service_exists`), InvalidError (`class_name_mismatch`, `syntax_error`, `file_name_invalid`)."""
        raise NotImplementedError

    async def change(self, service_id: str, change: ServiceChange) -> ServiceDetail:
        """Change name, description or properties."""
        raise NotImplementedError

    async def delete(self, service_id: str) -> None:
        """Forget a service. Raises ConflictError (`service_in_use`) naming the flows."""
        raise NotImplementedError

    async def new_version(self, service_id: str, form: VersionForm) -> ServiceDetail:
        """Freeze the newest version and go on with a copy of it."""
        raise NotImplementedError

    async def source(self, service_id: str, version: str = "latest") -> ServiceSource:
        """The text of a version."""
        raise NotImplementedError

    async def save_source(self, service_id: str, version: str, form: SourceForm) -> ServiceSource:
        """Store a new text. Raises ConflictError (`version_frozen`, `source_changed`), InvalidError (`class_name_mismatch`, `syntax_error`)."""
        raise NotImplementedError

    def check(self, file: str, source: str) -> CheckResult:
        """Look at a text without storing it: syntax, class name, requirements."""
        raise NotImplementedError

    async def library(self) -> builtins.list[LibraryEntry]:
        """The ready services that come with the product."""
        raise NotImplementedError
