"""Device twins: two JSON documents, each with a version that every change raises."""

from __future__ import annotations

from typing import Any

import msgspec

from emulator.errors import MessageInvalidError

DOCUMENT_LIMIT_BYTES = 32 * 1024
"""IoT Hub's limit for desired and for reported properties, each."""
DEPTH_LIMIT = 10


class TwinSection(msgspec.Struct):
    """One half of a twin: `desired` is the cloud's, `reported` the device's."""

    properties: dict[str, Any] = {}
    version: int = 1

    def merged(self, patch: Any) -> TwinSection:
        """What this section becomes by `patch`: objects merge, null removes, everything else replaces.

        Raises MessageInvalidError when `patch` is not an object, or the result is too large or too deep.
        """
        if not isinstance(patch, dict):
            raise MessageInvalidError("A twin patch must be a JSON object.")
        changes = {name: value for name, value in patch.items() if not name.startswith("$")}
        _check_depth(changes)
        properties = _merge(self.properties, changes)
        size = len(msgspec.json.encode(properties))
        if size > DOCUMENT_LIMIT_BYTES:
            raise MessageInvalidError(f"The twin would be {size} bytes; IoT Hub takes {DOCUMENT_LIMIT_BYTES}.")
        return TwinSection(properties, self.version + 1)

    def document(self) -> dict[str, Any]:
        """The properties with their `$version`."""
        return {**self.properties, "$version": self.version}


def _merge(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            before = merged.get(name)
            merged[name] = _merge(before if isinstance(before, dict) else {}, value)
        else:
            merged[name] = value
    return merged


def _check_depth(value: Any, depth: int = 1) -> None:
    if depth > DEPTH_LIMIT:
        raise MessageInvalidError(f"A twin patch may be {DEPTH_LIMIT} levels deep.")
    if isinstance(value, dict):
        for inner in value.values():
            if isinstance(inner, dict | list):
                _check_depth(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict | list):
                _check_depth(inner, depth + 1)
