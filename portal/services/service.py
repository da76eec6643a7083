"""What can be done with services."""

from __future__ import annotations

import builtins
from collections.abc import Sequence

from portal.bus import catalog_topic
from portal.errors import ConflictError, InvalidError, NotFoundError
from portal.services import script
from portal.services.models import Service, ServiceVersion
from portal.services.repository import ServiceRepository
from portal.services.views import (
    CheckResult,
    LibraryEntry,
    PropertyDefinitions,
    ServiceChange,
    ServiceDetail,
    ServiceForm,
    ServiceSource,
    ServiceVersionView,
    ServiceView,
    SourceForm,
    UsageView,
    VersionForm,
)
from portal.views import Page
from portal.work import Work

LATEST = "latest"


class ScriptService:
    """The organisation's services and the library."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._services = ServiceRepository(work.session)

    async def list(self, *, search: str = "", limit: int = 100, after: str | None = None) -> Page[ServiceView]:
        """Services by id."""
        organization_id = self._work.organization_id
        found = await self._services.page(organization_id, search=search, limit=limit + 1, after=after)
        shown = found[:limit]
        ids = [service.id for service in shown]
        versions = await self._services.latest_and_counts(organization_id, ids)
        flows = await self._services.usage_counts(organization_id, ids)
        return Page(
            items=[_view(service, *versions.get(service.id, ("", 0)), flows.get(service.id, 0)) for service in shown],
            next=shown[-1].id if len(found) > limit else None,
        )

    async def count(self) -> int:
        """How many services there are."""
        return await self._services.count(self._work.organization_id)

    async def get(self, service_id: str) -> ServiceDetail:
        """One service. Raises NotFoundError."""
        return await self._detail(await self._get(service_id))

    async def create(self, form: ServiceForm) -> ServiceDetail:
        """Make a service, version 0.1.

        Raises ConflictError (`service_exists`), NotFoundError (`library_entry_not_found`, `service_not_found`),
        InvalidError (`class_name_mismatch`, `syntax_error`, `file_name_invalid`, `origin_invalid`,
        `security_default`, …).
        """
        self._work.caller.require("operator")
        origin = await self._origin(form)
        script.check_file(origin.file)
        requirements = script.check_source(origin.file, origin.source)
        _check_properties(origin.properties)
        service_id = script.service_id(origin.file)
        if await self._services.get(self._work.organization_id, service_id) is not None:
            raise ConflictError(
                f"There is a service {origin.file} already; give this one another file name.",
                code="service_exists",
                field="file",
            )
        now = self._work.portal.now()
        service = Service(
            organization_id=self._work.organization_id,
            id=service_id,
            name=form.name.strip() or script.class_name(origin.file),
            file=origin.file,
            description=form.description.strip() or origin.description,
            properties=origin.properties.model_dump(mode="json"),
            created_at=now,
            updated_at=now,
            updated_by=self._work.caller.name,
        )
        self._services.add(service)
        await self._work.session.flush()
        self._services.add(self._version(service, 0, 1, origin.source, requirements))
        await self._work.session.flush()
        self._changed(service)
        return await self._detail(service)

    async def change(self, service_id: str, change: ServiceChange) -> ServiceDetail:
        """Change name, description or properties.

        Raises NotFoundError, InvalidError (`property_repeated`, `security_default`).
        """
        self._work.caller.require("operator")
        service = await self._get(service_id)
        if change.name is not None:
            service.name = change.name
        if change.description is not None:
            service.description = change.description
        if change.properties is not None:
            _check_properties(change.properties)
            service.properties = change.properties.model_dump(mode="json")
        self._touch(service)
        return await self._detail(service)

    async def delete(self, service_id: str) -> None:
        """Forget a service. Raises NotFoundError, ConflictError (`service_in_use`) naming the flows."""
        self._work.caller.require("operator")
        service = await self._get(service_id)
        usage = await self._services.usage(self._work.organization_id, service_id)
        if usage:
            names = ", ".join(sorted({flow.name for flow, _ in usage}))
            raise ConflictError(
                f"{service.file} is used by {names}; take it out of there first.",
                code="service_in_use",
                extra={"flows": sorted({flow.id for flow, _ in usage})},
            )
        await self._services.delete(service)
        self._changed(service)

    async def new_version(self, service_id: str, form: VersionForm) -> ServiceDetail:
        """Freeze the newest version and go on with a copy of it. Raises NotFoundError."""
        self._work.caller.require("operator")
        service = await self._get(service_id)
        latest = await self._latest(service)
        major, minor = (latest.major + 1, 0) if form.bump == "major" else (latest.major, latest.minor + 1)
        self._services.add(self._version(service, major, minor, latest.source, latest.requirements))
        self._touch(service)
        await self._work.session.flush()
        return await self._detail(service)

    async def source(self, service_id: str, version: str = LATEST) -> ServiceSource:
        """The text of a version. Raises NotFoundError."""
        service = await self._get(service_id)
        latest = await self._latest(service)
        return _source(service, await self._version_of(service, version), latest)

    async def save_source(self, service_id: str, version: str, form: SourceForm) -> ServiceSource:
        """Store a new text for the newest version.

        Raises NotFoundError, ConflictError (`version_frozen`, `source_changed`), InvalidError (`class_name_mismatch`,
        `syntax_error`, `requirements_invalid`); then the stored text is as it was.
        """
        self._work.caller.require("operator")
        service = await self._get(service_id)
        latest = await self._latest(service)
        stored = await self._version_of(service, version)
        if stored is not latest:
            raise ConflictError(
                f"Version {stored.version} of {service.file} is frozen, because {latest.version} exists; "
                "edit that one, or make a new version.",
                code="version_frozen",
            )
        if form.expected_sha256 is not None and form.expected_sha256 != stored.sha256:
            raise ConflictError(
                f"{stored.saved_by} saved {service.file} while you edited it; load it again before you save.",
                code="source_changed",
                extra={"sha256": stored.sha256, "saved_by": stored.saved_by},
            )
        requirements = script.check_source(service.file, form.source)
        stored.source = form.source
        stored.sha256 = script.sha256(form.source)
        stored.requirements = requirements
        stored.saved_at = self._work.portal.now()
        stored.saved_by = self._work.caller.name
        self._touch(service)
        return _source(service, stored, latest)

    def check(self, file: str, source: str) -> CheckResult:
        """Look at a text without storing it: syntax, class name, requirements."""
        try:
            script.check_file(file)
            requirements = script.check_source(file, source)
        except InvalidError as error:
            return CheckResult.model_validate(
                {"ok": False, "code": error.problem_code, "detail": error.detail, **error.extra}
            )
        return CheckResult(ok=True, requirements=requirements)

    async def library(self) -> builtins.list[LibraryEntry]:
        """The ready services that come with the product."""
        ids = await self._services.ids(self._work.organization_id)
        return [
            LibraryEntry(
                name=entry.name,
                file=entry.file,
                category=entry.category,
                summary=entry.summary,
                documentation=entry.documentation,
                properties=entry.properties,
                source=entry.source,
                installed=script.service_id(entry.file) in ids,
            )
            for entry in self._work.portal.library.values()
        ]

    async def _origin(self, form: ServiceForm) -> _Origin:
        kind, _, what = form.origin.partition(":")
        match kind:
            case "template":
                script.check_file(form.file)
                source = script.TEMPLATE.format(name=script.class_name(form.file))
                return _Origin(form.file, form.source or source, PropertyDefinitions(), "")
            case "library":
                entry = self._work.portal.library.get(what)
                if entry is None:
                    raise NotFoundError(
                        f"The library has no {what!r}; it has {', '.join(self._work.portal.library)}.",
                        code="library_entry_not_found",
                    )
                file = form.file or entry.file
                source = script.rename_class(entry.source, entry.name, script.class_name(file))
                return _Origin(file, source, entry.properties, entry.summary)
            case "copy":
                service = await self._get(what)
                latest = await self._latest(service)
                source = script.rename_class(
                    latest.source, script.class_name(service.file), script.class_name(form.file)
                )
                definitions = PropertyDefinitions.model_validate(service.properties)
                return _Origin(form.file, source, definitions, service.description)
            case "import":
                if form.source is None:
                    raise InvalidError(
                        "An import needs the script's text in `source`.", code="source_missing", field="source"
                    )
                script.check_file(form.file)
                # The syntax is checked first, so that its error is the one that is told.
                script.check_source(form.file, form.source)
                return _Origin(form.file, form.source, script.properties(form.file, form.source), "")
            case _:
                raise InvalidError(
                    f"`from` is {form.origin!r}; it must be template, library:<name>, copy:<service id> or import.",
                    code="origin_invalid",
                    field="from",
                )

    async def _get(self, service_id: str) -> Service:
        service = await self._services.get(self._work.organization_id, service_id)
        if service is None:
            raise NotFoundError(f"There is no service {service_id}.", code="service_not_found")
        return service

    async def _latest(self, service: Service) -> ServiceVersion:
        latest = await self._services.latest(service.organization_id, service.id)
        if latest is None:
            raise NotFoundError(f"{service.file} has no version.", code="version_not_found")
        return latest

    async def _version_of(self, service: Service, version: str) -> ServiceVersion:
        if version == LATEST:
            return await self._latest(service)
        found = await self._services.version(service.organization_id, service.id, version)
        if found is None:
            raise NotFoundError(f"{service.file} has no version {version}.", code="version_not_found")
        return found

    def _version(
        self, service: Service, major: int, minor: int, source: str, requirements: builtins.list[str]
    ) -> ServiceVersion:
        return ServiceVersion(
            organization_id=service.organization_id,
            service_id=service.id,
            major=major,
            minor=minor,
            source=source,
            sha256=script.sha256(source),
            requirements=requirements,
            saved_at=self._work.portal.now(),
            saved_by=self._work.caller.name,
        )

    def _touch(self, service: Service) -> None:
        service.updated_at = self._work.portal.now()
        service.updated_by = self._work.caller.name
        self._changed(service)

    def _changed(self, service: Service) -> None:
        portal = self._work.portal
        organization_id, service_id = service.organization_id, service.id

        def tell() -> None:
            portal.assignments_changed(organization_id)
            portal.bus.publish(catalog_topic(organization_id), {"change": "service", "id": service_id})

        self._work.after_commit(tell)

    async def _detail(self, service: Service) -> ServiceDetail:
        versions = await self._services.versions(service.organization_id, service.id)
        usage = await self._services.usage(service.organization_id, service.id)
        view = _view(service, versions[0].version, len(versions), len({flow.id for flow, _ in usage}))
        return ServiceDetail(
            **view.model_dump(),
            properties=PropertyDefinitions.model_validate(service.properties),
            history=_history(versions),
            used_by=[
                UsageView(flow_id=flow.id, flow=flow.name, version=activity.version, host=activity.host)
                for flow, activity in usage
            ],
        )


class _Origin:
    """What a new service begins with."""

    def __init__(self, file: str, source: str, properties: PropertyDefinitions, description: str) -> None:
        self.file = file
        self.source = source
        self.properties = properties
        self.description = description


def _check_properties(properties: PropertyDefinitions) -> None:
    for group, definitions in (("static", properties.static), ("security", properties.security)):
        seen: set[str] = set()
        for definition in definitions:
            if definition.id in seen:
                raise InvalidError(
                    f"The {group} property {definition.id} is there twice; give each its own id.",
                    code="property_repeated",
                    field=f"properties.{group}",
                )
            seen.add(definition.id)
    for definition in properties.security:
        if definition.default not in (None, ""):
            raise InvalidError(
                f"The security property {definition.id} has a default, which everybody who sees the service could "
                "read; leave it out and set the value in a flow.",
                code="security_default",
                field="properties.security",
            )


def _view(service: Service, latest: str, versions: int, flows: int) -> ServiceView:
    return ServiceView(
        id=service.id,
        name=service.name,
        file=service.file,
        class_name=script.class_name(service.file),
        description=service.description,
        latest=latest,
        versions=versions,
        updated_at=service.updated_at,
        updated_by=service.updated_by,
        flows=flows,
    )


def _history(versions: Sequence[ServiceVersion]) -> builtins.list[ServiceVersionView]:
    return [
        ServiceVersionView(
            version=row.version,
            sha256=row.sha256,
            size_bytes=len(row.source.encode()),
            requirements=row.requirements,
            saved_at=row.saved_at,
            saved_by=row.saved_by,
            editable=index == 0,
        )
        for index, row in enumerate(versions)
    ]


def _source(service: Service, version: ServiceVersion, latest: ServiceVersion) -> ServiceSource:
    return ServiceSource(
        id=service.id,
        file=service.file,
        version=version.version,
        source=version.source,
        sha256=version.sha256,
        editable=version is latest,
    )
