"""The ready services that come with the product, read from its own package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from portal.services import script
from portal.services.views import PropertyDefinitions


@dataclass(frozen=True, slots=True)
class LibraryScript:
    """One ready service."""

    file: str
    source: str
    documentation: str
    category: str
    properties: PropertyDefinitions

    @property
    def name(self) -> str:
        """`ReadGPIO`."""
        return script.class_name(self.file)

    @property
    def summary(self) -> str:
        """The first paragraph of the documentation, on one line."""
        return " ".join(self.documentation.split("\n\n")[0].split())


def load_library() -> dict[str, LibraryScript]:
    """Read the library, by name. Blocks; done once at start."""
    found: dict[str, LibraryScript] = {}
    for item in sorted(resources.files("services.library").iterdir(), key=lambda item: item.name):
        if not item.name.endswith(".py") or item.name.startswith("_"):
            continue
        source = item.read_text("utf-8")
        entry = LibraryScript(
            file=item.name,
            source=source,
            documentation=script.documentation(item.name, source),
            category=script.category(item.name, source),
            properties=script.properties(item.name, source),
        )
        found[entry.name] = entry
    return found
