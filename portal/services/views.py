"""What pages and API see of services."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from portal.views import Form, View

PropertyType = Literal["string", "number", "boolean", "select"]
FILE_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,62}\.py$"
SOURCE_LIMIT_CHARACTERS = 500_000


class PropertyDefinition(Form):
    """A value that the user of a service may set; `GetPropertyValue` reads it."""

    id: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,62}$", examples=["gpio_pin"])
    label: str = Field(default="", max_length=200, examples=["GPIO pin"])
    type: PropertyType = "string"
    default: Any = None
    options: list[str] = Field(default_factory=list, max_length=100)
    """For type `select`."""
    help: str = Field(default="", max_length=1000)
    required: bool = False


class PropertyDefinitions(Form):
    """All properties of a service. `security` values are stored encrypted, never shown again, and have no default."""

    static: list[PropertyDefinition] = Field(default_factory=list, max_length=200)
    security: list[PropertyDefinition] = Field(default_factory=list, max_length=200)


class LibraryEntry(View):
    """A ready service."""

    name: str
    """`ReadGPIO`: what `from: "library:ReadGPIO"` takes."""
    file: str
    category: str
    """`GPIO`, `System`, …; empty when the script names none."""
    summary: str
    documentation: str
    properties: PropertyDefinitions
    source: str
    installed: bool
    """Whether the organisation has a service of this file already."""


class ServiceVersionView(View):
    """One version of a service."""

    version: str
    sha256: str
    size_bytes: int
    requirements: list[str]
    """From the script's PEP 723 header."""
    saved_at: datetime
    saved_by: str
    editable: bool
    """Only the newest version is; older ones are as they were."""


class UsageView(View):
    """A flow that uses a service."""

    flow_id: str
    flow: str
    version: str
    host: str


class ServiceView(View):
    """A service as a list shows it."""

    id: str
    name: str
    file: str
    class_name: str
    description: str
    latest: str
    versions: int
    updated_at: datetime
    updated_by: str
    flows: int


class ServiceDetail(ServiceView):
    """A service as its own page shows it."""

    properties: PropertyDefinitions
    history: list[ServiceVersionView]
    """Newest first."""
    used_by: list[UsageView]


class ServiceSource(View):
    """The text of one version."""

    id: str
    file: str
    version: str
    source: str
    sha256: str
    editable: bool


class ServiceForm(Form):
    """Makes a service."""

    name: str = Field(default="", max_length=100, description="Empty: the file's name.", examples=["Read GPIO"])
    file: str = Field(
        default="",
        max_length=67,
        description="Its name without `.py` is the class's name. May be left out with `from: library:…`.",
        examples=["ReadGPIO.py"],
    )
    description: str = Field(default="", max_length=2000)
    origin: str = Field(
        default="template",
        alias="from",
        max_length=100,
        description="`template`, `library:<name>`, `copy:<service id>` or `import` (then `source` is the text).",
        examples=["library:ReadGPIO"],
    )
    source: str | None = Field(default=None, max_length=SOURCE_LIMIT_CHARACTERS)

    model_config = ConfigDict(populate_by_name=True, str_strip_whitespace=False)


class ServiceChange(Form):
    """What to change; a field that is left out stays as it is."""

    name: str | None = Field(default=None, min_length=1, max_length=100)
    description: str | None = Field(default=None, max_length=2000)
    properties: PropertyDefinitions | None = None


class VersionForm(Form):
    """Makes a new version out of the newest one, which is frozen by that."""

    bump: Literal["minor", "major"] = "minor"


class SourceForm(Form):
    """A new text for the newest version."""

    source: str = Field(max_length=SOURCE_LIMIT_CHARACTERS)
    expected_sha256: str | None = Field(
        default=None, description="Of the text that was edited; 409 `source_changed` when somebody saved in between."
    )

    model_config = ConfigDict(str_strip_whitespace=False)


class CheckResult(View):
    """What is wrong with a script, if anything."""

    ok: bool
    code: str | None = None
    detail: str = ""
    line: int | None = None
    column: int | None = None
    text: str = ""
    requirements: list[str] = Field(default_factory=list)
