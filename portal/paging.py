"""Lists in parts."""

from __future__ import annotations

from portal.errors import InvalidError


def parse_cursor(after: str | None) -> int | None:
    """A numeric `after`. Raises InvalidError (`cursor_invalid`)."""
    if after is None:
        return None
    if not after.isascii() or not after.isdecimal() or len(after) > 18:
        raise InvalidError(
            "`after` must be what `next` of the previous part said.", code="cursor_invalid", field="after"
        )
    return int(after)
