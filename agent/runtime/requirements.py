"""What a service asks for: PEP 508 requirements, PEP 723 headers, and whether what is installed answers them."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from agent.errors import OutstationError
from agent.runtime.pip_settings import without_credentials

Requirements = Mapping[str, Requirement]
"""Requirements by their normalised text, so that the same one twice is one."""


class PackageError(OutstationError):
    """Something about a service's packages cannot be done; what was installed before is as it was.

    PackageError
    ├── RequirementError (ValueError)        not a PEP 508 requirement
    ├── ScriptMetadataError (ValueError)     a PEP 723 header that cannot be used
    └── PackageInstallError (RuntimeError)   the installer failed; the text carries its reason
    """

    code: ClassVar[str] = "package_error"


class RequirementError(PackageError, ValueError):
    """A requirement is not valid PEP 508; the text quotes it."""

    code = "requirement_invalid"


class ScriptMetadataError(PackageError, ValueError):
    """The script's PEP 723 header cannot be read, or asks for another Python."""

    code = "script_metadata_invalid"


class PackageInstallError(PackageError, RuntimeError):
    """The installer failed; the text is one sentence with its own reason."""

    code = "package_install_failed"


def parse_requirements(texts: Iterable[str]) -> dict[str, Requirement]:
    """Parse requirements and leave out those whose marker is not for this machine.

    Raises RequirementError, quoting the requirement, when one is not valid PEP 508.
    """
    found: dict[str, Requirement] = {}
    for text in texts:
        try:
            requirement = Requirement(text)
        except (InvalidRequirement, TypeError) as error:
            reason = without_credentials(str(error).splitlines()[0])
            raise RequirementError(
                f"The requirement {without_credentials(str(text))!r} is not valid: {reason}. "
                "Write it as in PEP 508, for example 'paho-mqtt>=2,<3'."
            ) from error
        if requirement.marker is None or requirement.marker.evaluate():
            found[normalise(requirement)] = requirement
    return found


def normalise(requirement: Requirement) -> str:
    """One spelling for every way to write the same requirement; the marker, which was evaluated, is left out."""
    extras = ",".join(sorted(canonicalize_name(extra) for extra in requirement.extras))
    name = canonicalize_name(requirement.name) + (f"[{extras}]" if extras else "")
    return f"{name} @ {requirement.url}" if requirement.url else f"{name}{requirement.specifier}"


class InstalledPackages:
    """The packages that a `sys.path` would find, first ones first.

    Args:
        path: the folders to look in, in order.
    """

    def __init__(self, path: Sequence[str]) -> None:
        self._path = list(path)

    def find(self, name: str) -> importlib.metadata.Distribution | None:
        """The package that an import would get, None when there is none with metadata."""
        return next(iter(importlib.metadata.distributions(name=name, path=self._path)), None)

    def satisfy(self, requirements: Iterable[Requirement]) -> bool:
        """Whether everything is there: versions, extras, and what the packages require in turn."""
        seen: set[tuple[str, frozenset[str]]] = set()
        waiting = list(requirements)
        while waiting:
            requirement = waiting.pop()
            key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            package = self.find(requirement.name)
            if package is None or not _answers(package, requirement):
                return False
            if key not in seen:
                seen.add(key)
                waiting.extend(_dependencies(package, requirement.extras))
        return True


def _answers(package: importlib.metadata.Distribution, requirement: Requirement) -> bool:
    if requirement.url:
        try:
            origin = json.loads(package.read_text("direct_url.json") or "{}")
        except ValueError:
            return False
        return bool(origin.get("url") == requirement.url)
    # What is installed may be a pre-release; it was somebody's wish.
    return requirement.specifier.contains(package.version, prereleases=True)


def _dependencies(package: importlib.metadata.Distribution, extras: Iterable[str]) -> Iterable[Requirement]:
    for text in package.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # Metadata older than the standard; the package was installed with it all the same.
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def pep723_dependencies(source: str) -> list[str]:
    """Return the requirements of a script's PEP 723 header; none when it has no header.

    Raises ScriptMetadataError when the header is not valid TOML, is there twice, or its `requires-python` is not this
    Python; RequirementError when a requirement is not valid.
    """
    header = _header(source)
    if header is None:
        return []
    try:
        metadata = tomllib.loads(header)
    except tomllib.TOMLDecodeError as error:
        raise ScriptMetadataError(f"The script's '# /// script' header is not valid TOML: {error}.") from error
    _check_python(metadata.get("requires-python"))
    dependencies: Any = metadata.get("dependencies", [])
    if not isinstance(dependencies, list) or not all(isinstance(each, str) for each in dependencies):
        raise ScriptMetadataError(
            "'dependencies' in the script's '# /// script' header must be a list of texts: "
            'dependencies = ["paho-mqtt>=2"].'
        )
    parse_requirements(dependencies)
    return dependencies


def _header(source: str) -> str | None:
    """The TOML between `# /// script` and the last `# ///` of that run of comment lines, as PEP 723 says."""
    headers: list[str] = []
    lines = source.splitlines()
    at = 0
    while at < len(lines):
        if lines[at].rstrip() != "# /// script":
            at += 1
            continue
        end = at + 1
        while end < len(lines) and (lines[end] == "#" or lines[end].startswith("# ")):
            end += 1
        closing = next((i for i in range(end - 1, at, -1) if lines[i].rstrip() == "# ///"), None)
        if closing is None:
            raise ScriptMetadataError("The script's '# /// script' header has no end: close it with a line '# ///'.")
        headers.append("\n".join(line[2:] for line in lines[at + 1 : closing]))
        at = closing + 1
    if len(headers) > 1:
        raise ScriptMetadataError("The script has more than one '# /// script' header; keep one.")
    return headers[0] if headers else None


def _check_python(wanted: Any) -> None:
    if wanted is None:
        return
    here = platform.python_version()
    try:
        fits = SpecifierSet(wanted).contains(here, prereleases=True)
    except (InvalidSpecifier, TypeError, AttributeError) as error:
        raise ScriptMetadataError(
            f"'requires-python' in the script's header is {wanted!r}; write it as '>=3.11'."
        ) from error
    if not fits:
        raise ScriptMetadataError(
            f"The script needs Python {wanted} and this node has {here}: "
            "update the node's Python or change 'requires-python'."
        )


def site_path(root: Path, path: Sequence[str]) -> list[str]:
    """`path` without the environments below `root`: what the node itself brings."""
    return [entry for entry in path if not Path(entry).is_relative_to(root)]
