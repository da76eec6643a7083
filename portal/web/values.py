"""Values of properties, between the text of a control and what is stored."""

from __future__ import annotations

from typing import Any


def shown_value(value: Any) -> str:
    """A stored value as the text of a control: nothing is empty, yes and no are words."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def typed_value(kind: str, text: str) -> Any:
    """What was typed, as the property's type wants it; None where nothing was typed.

    What is not of the type stays text, so that the check of the service layer names it.
    """
    text = text.strip()
    if not text:
        return None
    if kind == "boolean":
        words = {
            "yes": True,
            "true": True,
            "1": True,
            "on": True,
            "no": False,
            "false": False,
            "0": False,
            "off": False,
        }
        return words.get(text.lower(), text)
    if kind == "number":
        for convert in (int, float):
            try:
                return convert(text)
            except ValueError:
                continue
    return text
