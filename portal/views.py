"""What all features' answers share.

A view is what pages and API show: plain values, never a database row, never a secret.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

Role = Literal["owner", "operator", "viewer"]

Item = TypeVar("Item")


class View(BaseModel):
    """Something that is shown; immutable."""

    model_config = ConfigDict(frozen=True)


class Form(BaseModel):
    """Something that is asked for; unknown fields are refused, so that a typing mistake is seen."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class Page(View, Generic[Item]):
    """A part of a list; ask again with `after=next` for what follows."""

    items: list[Item]
    next: str | None = None
    """The `after` of the following part; None at the end."""
