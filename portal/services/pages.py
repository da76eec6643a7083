"""The list of services, the library, and what it takes to make a service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from portal.bus import Event, catalog_topic
from portal.services.editor import service_page as service_page  # registers the page of one service
from portal.services.views import LibraryEntry, ServiceForm, ServiceView
from portal.web.components import (
    Button,
    Choice,
    Dialog,
    FilePick,
    Moment,
    Tag,
    TextField,
    empty,
    panel,
    status,
    tell,
)
from portal.web.shell import page, page_head
from portal.web.visit import Visit

ROWS = 100


@page("/services", title="Services", section="services")
async def services_page(visit: Visit) -> None:
    """The organisation's services, and those that come with the product."""
    shown = ServicesShown(visit)
    await visit.watch(catalog_topic(visit.caller.organization_id), then=shown.happened)
    await shown.refresh()


class ServicesShown:
    """The list and the library's cards."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._makes = visit.may("operator")
        self._drawn: list[ServiceView] | None = None
        self._library: list[LibraryEntry] = []
        self._cards: dict[str, Tag] = {}
        self._limit = ROWS
        with page_head("Services", lead="Python that runs on your nodes."):
            if self._makes:
                Button("New service", self._new, kind="primary", drawing="plus")
        with Tag("div", "", "stack stack-wide"):
            with Tag("section", "", "panel", aria_label="Services"):
                with Tag("div", "", "console-bar"), Tag("div", "", "grow"):
                    self._search = TextField(
                        "Search services",
                        placeholder="Search services",
                        label_hidden=True,
                        type="search",
                        on_change=self._narrowed,
                    )
                self._list = Tag("div", "", "list rows-services")
            with panel("Library"):
                self._tiles = Tag("div", "", "tiles")

    async def happened(self, events: Sequence[Event]) -> None:
        """Show what changed."""
        await self.refresh()

    async def refresh(self) -> None:
        """Read list and library again and draw what differs."""
        async with self._visit.reading() as work:
            found = (await work.services.list(search=self._search.value.strip(), limit=self._limit)).items
            library = await work.services.library()
        if found != self._drawn:
            self._drawn = found
            self._list.clear()
            with self._list:
                self._draw_list(found)
        if [(each.name, each.installed) for each in library] != [(each.name, each.installed) for each in self._library]:
            self._library = library
            self._tiles.clear()
            with self._tiles:
                for entry in library:
                    self._card(entry)

    async def _narrowed(self, _: Any) -> None:
        await self._visit.acting(self.refresh)()

    def _draw_list(self, services: Sequence[ServiceView]) -> None:
        if not services:
            if self._search.value.strip():
                empty("No service matches.", "Search for something else.")
                return
            with empty("No service yet.", "Take one from the library below, or write your own in the browser."):
                if self._makes:
                    Button("New service", self._new, kind="primary", drawing="plus")
            return
        with Tag("div", "", "row row-head", aria_hidden="true"):
            for title in ("Name", "File", "Version", "Used by", "Changed"):
                Tag("span", title)
        for service in services:
            with Tag("a", "", "row", href=f"/services/{service.id}"):
                with Tag("span", "", "stack clip").style("gap: 0"):
                    Tag("span", service.name, "row-title clip")
                    if service.description:
                        Tag("span", service.description.splitlines()[0], "muted small clip")
                Tag("span", service.file, "data muted clip wide-only")
                Tag("span", service.latest, "data")
                Tag(
                    "span",
                    "no flow" if not service.flows else f"{service.flows} flow{'' if service.flows == 1 else 's'}",
                    "muted small wide-only",
                )
                with Tag("span", "", "muted small wide-only"):
                    Moment(service.updated_at)

    def _card(self, entry: LibraryEntry) -> None:
        with Tag("article", "", "pick"):
            Tag("h3", entry.name)
            Tag("p", entry.summary, "muted small")
            with Tag("details", "", "fold small"):
                Tag("summary", "About")
                Tag("p", entry.documentation, "muted").style("white-space: pre-line; margin-top: 8px")
            if entry.installed:
                status("good", "in your services", "small")
            elif self._makes:
                Button(f"Import {entry.name}", self._visit.acting(self._importing(entry)), small=True, drawing="plus")

    def _importing(self, entry: LibraryEntry) -> Any:
        async def take() -> None:
            async with self._visit.writing() as work:
                service = await work.services.create(ServiceForm.model_validate({"from": f"library:{entry.name}"}))
            tell(f"{service.name} is in your services. Put it into a flow to run it.")

        return take

    def _new(self) -> None:
        dialog = Dialog("New service", wide=True)
        picked: dict[str, str] = {}
        copies = [(service.id, f"{service.name} ({service.file})") for service in self._drawn or ()]

        def took(name: str, text: str) -> None:
            picked["source"] = text
            if not file.value:
                file.value = name

        def chose(event: Any) -> None:
            pick.visible = event.value == "import"
            copy.visible = event.value == "copy"

        with dialog.body:
            origin = Choice(
                "Start from",
                [
                    ("template", "A template"),
                    ("import", "A file of mine"),
                    *([("copy", "A copy of a service")] if copies else []),
                ],
                "template",
                on_change=chose,
            )
            pick = Tag("div")
            with pick:
                FilePick("Choose a file", accept=".py", on_picked=took, on_refused=lambda text: tell(text, fault=True))
            pick.visible = False
            copy = Tag("div")
            with copy:
                source = Choice("Service to copy", copies, copies[0][0] if copies else "")
            copy.visible = False
            file = TextField(
                "File name",
                placeholder="MyService.py",
                mono=True,
                hint="The class in it has the same name, without .py.",
            )
            with Tag("div", "", "pair"):
                name = TextField("Name", placeholder="As the file", hint="Optional.")
                description = TextField("Description", hint="Optional.")

        async def make() -> None:
            file_name = file.value.strip()
            if not file_name:
                file.wrong("Give the file a name, for example MyService.py.")
                return
            if origin.value == "import" and "source" not in picked:
                tell("Choose the file first.", fault=True)
                return
            form = ServiceForm.model_validate(
                {
                    "name": name.value,
                    "file": file_name if file_name.endswith(".py") else f"{file_name}.py",
                    "description": description.value,
                    "from": f"copy:{source.value}" if origin.value == "copy" else origin.value,
                    "source": picked.get("source") if origin.value == "import" else None,
                }
            )
            async with self._visit.writing() as work:
                service = await work.services.create(form)
            dialog.close()
            ui.navigate.to(f"/services/{service.id}")

        with dialog.foot:
            Button("Cancel", dialog.close)
            Button("Create", self._visit.acting(make), kind="primary")
        dialog.open()
