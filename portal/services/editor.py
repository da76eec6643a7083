"""The page of one service: its text, versions, properties and uses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from nicegui import background_tasks, ui

from portal.bus import Event, catalog_topic
from portal.errors import ConflictError
from portal.services.views import (
    CheckResult,
    PropertyDefinition,
    PropertyDefinitions,
    PropertyType,
    ServiceChange,
    ServiceDetail,
    ServiceSource,
    SourceForm,
    VersionForm,
)
from portal.web.components import (
    Button,
    Choice,
    Dialog,
    Moment,
    SourceEditor,
    Tag,
    TextField,
    Toggle,
    confirm,
    empty,
    keep_from_leaving,
    panel,
    status,
    tell,
)
from portal.web.shell import page, page_head
from portal.web.values import shown_value, typed_value
from portal.web.visit import Visit

CHECK_AFTER_SECONDS = 0.35
"""The text is checked when nobody has typed for so long."""
TYPES: tuple[tuple[str, str], ...] = (
    ("string", "Text"),
    ("number", "Number"),
    ("boolean", "Yes or no"),
    ("select", "Choice"),
)


@page("/services/{service_id}", title="Service", section="services")
async def service_page(visit: Visit, service_id: str) -> None:
    """One service."""
    async with visit.reading() as work:
        service = await work.services.get(service_id)
        source = await work.services.source(service_id)
        check = work.services.check(source.file, source.source)
    ui.page_title(f"{service.name} · Outstation")
    shown = ServiceShown(visit, service, source)
    shown.show_check(check)
    await visit.watch(catalog_topic(visit.caller.organization_id), then=shown.happened)


class ServiceShown:
    """Editor at the top; below it what belongs to the service."""

    def __init__(self, visit: Visit, service: ServiceDetail, source: ServiceSource) -> None:
        self._visit = visit
        self._service = service
        self._source = source
        self._edits = visit.may("operator")
        self._dirty = False
        self._checking: asyncio.Task[None] | None = None
        lead = service.description.splitlines()[0] if service.description else ""
        with page_head(service.name, crumb=("Services", "/services"), lead=lead):
            pass
        with Tag("div", "", "stack stack-wide"):
            self._build_editor()
            with Tag("div", "", "columns"):
                self._properties = PropertyDesigner(visit, service, self._edits)
                with Tag("div", "", "stack stack-wide"):
                    with panel("Versions", flush=True):
                        self._versions = Tag("div", "", "list rows-versions")
                    with panel("Used by", flush=True):
                        self._uses = Tag("div", "", "list rows-uses")
                    if self._edits:
                        with panel("About"), Tag("div", "", "stack"):
                            self._name = TextField("Name", service.name)
                            self._description = TextField("Description", service.description, rows=3)
                            with Tag("div", "", "line"):
                                Button("Store", visit.acting(self._store_about))
                                Button(
                                    "Delete this service", visit.acting(self._delete), kind="danger", drawing="trash"
                                )
        self._draw()

    def _build_editor(self) -> None:
        act = self._visit.acting
        with Tag("section", "", "panel", aria_label="Editor"):
            with Tag("div", "", "panel-head"):
                with Tag("div", "", "line"):
                    Tag("h2", self._service.file, "data")
                    self._version = Tag("span", self._source.version, "tag data")
                    self._state = Tag("span", "", "muted small")
                self._requirements = Tag("div", "", "line muted small")
            self._editor = SourceEditor(self._source.source, on_edit=self._edited, on_save=act(self._save))
            if not self._edits:
                self._editor.disable()
            with Tag("div", "", "editor-foot"):
                self._verdict = Tag("div", "", "line grow", role="status", aria_live="polite")
                if self._edits:
                    with Tag("div", "", "line"):
                        Button("Update minor", act(lambda: self._update("minor")))
                        Button("Update major", act(lambda: self._update("major")))
                        self._save_button = Button("Save", act(self._save), kind="primary")

    async def happened(self, events: Sequence[Event]) -> None:
        """Show versions and uses again after a change somewhere."""
        async with self._visit.reading() as work:
            service = await work.services.get(self._service.id)
        if service != self._service:
            self._service = service
            self._draw()

    def _draw(self) -> None:
        self._versions.clear()
        with self._versions:
            for each in self._service.history:
                with Tag("button", "", "row row-button", type="button").on(
                    "click", self._visit.acting(self._opening(each.version)), []
                ) as row:
                    Tag("span", each.version, "data row-title")
                    with Tag("span", "", "muted small clip"):
                        Tag("span", f"{each.saved_by}, ")
                        Moment(each.saved_at)
                    Tag("span", "newest" if each.editable else "frozen", "tag")
                row.set(aria_current="true" if each.version == self._source.version else None)
        self._uses.clear()
        with self._uses:
            for use in self._service.used_by:
                with Tag("a", "", "row", href=f"/flows/{use.flow_id}"):
                    with Tag("span", "", "clip"):
                        Tag("span", use.flow, "row-title")
                        Tag("span", f" on {use.host}", "muted")
                    Tag("span", use.version, "tag data")
            if not self._service.used_by:
                with empty("No flow uses it.", "A flow says on which nodes it runs, and with which values."):
                    if self._edits:
                        Button("Put it into a flow", to=f"/flows/new?service={self._service.id}", small=True)

    def _edited(self) -> None:
        self._set_dirty(self._editor.value != self._source.source)
        if self._checking is not None:
            self._checking.cancel()
        self._checking = background_tasks.create(self._check_soon(), name="check source")

    async def _check_soon(self) -> None:
        await asyncio.sleep(CHECK_AFTER_SECONDS)
        with self._editor:
            await self._visit.acting(self._check)()

    async def _check(self) -> None:
        async with self._visit.reading() as work:
            self.show_check(work.services.check(self._service.file, self._editor.value))

    def show_check(self, check: CheckResult) -> None:
        """Say what is wrong with the text, at its line."""
        self._verdict.clear()
        with self._verdict:
            if check.ok:
                status("good", "Syntax and class name are right")
            else:
                where = f"Line {check.line}: " if check.line else ""
                status("fault", f"{where}{check.detail}").classes("mark-long")
        self._editor.wrong_line(check.line if not check.ok else None)
        self._requirements.clear()
        with self._requirements:
            if check.requirements:
                Tag("span", "Packages:")
                for each in check.requirements:
                    Tag("span", each, "tag data")

    def _set_dirty(self, dirty: bool) -> None:
        if dirty == self._dirty:
            return
        self._dirty = dirty
        keep_from_leaving(dirty)
        self._state.text = "Not saved yet" if dirty else ""

    def _opening(self, version: str) -> Any:
        async def show() -> None:
            if version == self._source.version:
                return
            if self._dirty and not await confirm(
                "Leave your changes?", "What you typed since the last save is lost.", "Open the other version"
            ):
                return
            async with self._visit.reading() as work:
                self._show_source(await work.services.source(self._service.id, version))

        return show

    def _show_source(self, source: ServiceSource) -> None:
        self._source = source
        self._editor.value = source.source
        self._set_dirty(False)
        self._version.text = source.version
        can_edit = self._edits and source.editable
        self._editor.set_enabled(can_edit)
        self._state.text = "" if source.editable else "Frozen: only the newest version can be changed"
        if self._edits:
            self._save_button.enable(can_edit)
        self._draw()

    async def _save(self) -> None:
        await self._store_source(self._source.sha256)

    async def _store_source(self, expected: str | None) -> None:
        text = self._editor.value
        try:
            async with self._visit.writing() as work:
                source = await work.services.save_source(
                    self._service.id, self._source.version, SourceForm(source=text, expected_sha256=expected)
                )
        except ConflictError as error:
            if error.problem_code != "source_changed":
                raise
            await self._settle(error.detail)
            return
        self._source = source
        self._set_dirty(self._editor.value != text)
        tell(f"Saved as {source.version}. Nodes that run it get it now.")

    async def _settle(self, detail: str) -> None:
        dialog = Dialog("Somebody saved in between")
        with dialog.body:
            Tag("p", detail)
        with dialog.foot:
            Button("Go on editing", dialog.close)
            Button("Load theirs", lambda: dialog.submit("theirs"))
            Button("Overwrite with mine", lambda: dialog.submit("mine"), kind="danger")
        choice = await dialog
        if choice == "mine":
            await self._store_source(None)
        elif choice == "theirs":
            async with self._visit.reading() as work:
                self._show_source(await work.services.source(self._service.id, self._source.version))

    async def _update(self, bump: Any) -> None:
        if self._dirty:
            await self._save()
        async with self._visit.writing() as work:
            self._service = await work.services.new_version(self._service.id, VersionForm(bump=bump))
            source = await work.services.source(self._service.id)
        self._show_source(source)
        tell(f"Version {source.version} is the newest now.")

    async def _store_about(self) -> None:
        async with self._visit.writing() as work:
            change = ServiceChange(name=self._name.value, description=self._description.value)
            self._service = await work.services.change(self._service.id, change)
        tell("Stored.")

    async def _delete(self) -> None:
        if await confirm(
            f"Delete {self._service.file}?",
            "All its versions go. Flows that use it keep it from being deleted.",
            "Delete",
        ):
            async with self._visit.writing() as work:
                await work.services.delete(self._service.id)
            self._set_dirty(False)
            ui.navigate.to("/services")


@dataclass
class PropertyRow:
    """The controls of one property definition."""

    card: Tag
    id: TextField
    label: TextField
    type: Choice
    default: TextField
    options: TextField
    help: str
    required: Toggle


class PropertyDesigner:
    """Which values the user of a service may set: open ones, and secrets."""

    def __init__(self, visit: Visit, service: ServiceDetail, edits: bool) -> None:
        self._visit = visit
        self._service_id = service.id
        self._edits = edits
        self._rows: dict[str, list[PropertyRow]] = {"static": [], "security": []}
        self._lists: dict[str, Tag] = {}
        self._nothing: dict[str, Tag] = {}
        with panel("Properties") as aside:
            if edits:
                with aside:
                    Button("Store properties", visit.acting(self._store), small=True)
            with Tag("div", "", "stack stack-wide"):
                self._build("static", "Static", 'Read with GetPropertyValue("static", id).', service.properties.static)
                self._build(
                    "security",
                    "Security",
                    "Secrets: stored encrypted, sent to nodes only, never shown again.",
                    service.properties.security,
                )

    def _build(self, kind: str, title: str, text: str, definitions: Sequence[PropertyDefinition]) -> None:
        with Tag("div", "", "stack stack-tight"):
            with Tag("div", "", "line line-apart"):
                with Tag("div"):
                    Tag("h3", title)
                    Tag("p", text, "muted small")
                if self._edits:
                    Button(
                        f"Add a {kind} property",
                        lambda: self._add(kind, PropertyDefinition(id="name")),
                        small=True,
                        drawing="plus",
                    )
            self._lists[kind] = Tag("div", "", "stack stack-tight")
            self._nothing[kind] = Tag("p", "None.", "muted small")
        for definition in definitions:
            self._add(kind, definition)

    def _add(self, kind: str, definition: PropertyDefinition) -> None:
        self._nothing[kind].visible = False
        with self._lists[kind], Tag("div", "", "card") as card, Tag("div", "", "card-body"):
            with Tag("div", "", "pair pair-tight"):
                label = TextField("Label", definition.label)
                name = TextField("Id", definition.id, mono=True)
                choice = Choice("Type", TYPES, definition.type)
                default = TextField("Default", shown_value(definition.default))
                # Everybody who sees the service would see it.
                default.visible = kind != "security"
            options = TextField("Choices", ", ".join(definition.options), hint="Separated by commas.")
            options.visible = definition.type == "select"
            choice.on_value_change(lambda event: options.set_visibility(event.value == "select"))
            if definition.help:
                Tag("p", definition.help, "muted small")
            with Tag("div", "", "line line-apart"):
                required = Toggle("Must be set", definition.required, on_text="", off_text="")
                row = PropertyRow(card, name, label, choice, default, options, definition.help, required)
                if self._edits:
                    Button("Remove", lambda: self._remove(kind, row), kind="plain", small=True, drawing="trash")
        self._rows[kind].append(row)

    def _remove(self, kind: str, row: PropertyRow) -> None:
        self._rows[kind].remove(row)
        row.card.delete()
        self._nothing[kind].visible = not self._rows[kind]

    async def _store(self) -> None:
        properties = PropertyDefinitions(
            static=[_definition(row) for row in self._rows["static"]],
            security=[_definition(row) for row in self._rows["security"]],
        )
        async with self._visit.writing() as work:
            await work.services.change(self._service_id, ServiceChange(properties=properties))
        tell("Properties stored.")


def _definition(row: PropertyRow) -> PropertyDefinition:
    return PropertyDefinition(
        id=row.id.value,
        label=row.label.value,
        type=cast(PropertyType, row.type.value),
        default=typed_value(row.type.value, row.default.value),
        options=[option.strip() for option in row.options.value.split(",") if option.strip()],
        help=row.help,
        required=row.required.value,
    )
