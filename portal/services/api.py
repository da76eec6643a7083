"""Services, their versions and the library."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field

from portal.access import After, Limit, OperatorWrites, Search, ViewerReads
from portal.services.views import (
    SOURCE_LIMIT_CHARACTERS,
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
from portal.views import Form, Page

router = APIRouter(tags=["services"])
Id = Annotated[str, Path(max_length=100, examples=["readgpio_py"])]
Version = Annotated[str, Path(pattern=r"^(latest|\d{1,6}\.\d{1,6})$", examples=["0.1"])]


class CheckForm(Form):
    """A script to look at."""

    file: str = Field(max_length=100, examples=["ReadGPIO.py"])
    source: str = Field(max_length=SOURCE_LIMIT_CHARACTERS)


@router.get("/library")
async def list_library(work: ViewerReads) -> list[LibraryEntry]:
    """The ready services that come with the product."""
    return await work.services.library()


@router.get("/services")
async def list_services(
    work: ViewerReads, search: Search = "", limit: Limit = 100, after: After = None
) -> Page[ServiceView]:
    """Services by id."""
    return await work.services.list(search=search, limit=limit, after=after)


@router.post("/services", status_code=201)
async def create_service(work: OperatorWrites, form: ServiceForm) -> ServiceDetail:
    """Make a service from the template, the library, a copy, or a text; it begins with version 0.1."""
    return await work.services.create(form)


@router.post("/services/check")
async def check_script(work: ViewerReads, form: CheckForm) -> CheckResult:
    """Look at a script without storing it: syntax, class name, requirements."""
    return work.services.check(form.file, form.source)


@router.get("/services/{service_id}")
async def get_service(work: ViewerReads, service_id: Id) -> ServiceDetail:
    """One service with its versions, its properties, and the flows that use it."""
    return await work.services.get(service_id)


@router.patch("/services/{service_id}")
async def change_service(work: OperatorWrites, service_id: Id, change: ServiceChange) -> ServiceDetail:
    """Change name, description or properties."""
    return await work.services.change(service_id, change)


@router.delete("/services/{service_id}", status_code=204)
async def delete_service(work: OperatorWrites, service_id: Id) -> None:
    """Forget a service; refused while a flow uses it."""
    await work.services.delete(service_id)


@router.post("/services/{service_id}/versions", status_code=201)
async def new_version(work: OperatorWrites, service_id: Id, form: VersionForm) -> ServiceDetail:
    """Freeze the newest version and go on with a copy of it under the next number."""
    return await work.services.new_version(service_id, form)


@router.get("/services/{service_id}/versions/{version}/source")
async def get_source(work: ViewerReads, service_id: Id, version: Version) -> ServiceSource:
    """The text of a version."""
    return await work.services.source(service_id, version)


@router.put("/services/{service_id}/versions/{version}/source")
async def save_source(work: OperatorWrites, service_id: Id, version: Version, form: SourceForm) -> ServiceSource:
    """Store a new text for the newest version; the class's name must be the file's."""
    return await work.services.save_source(service_id, version, form)
