"""Text that must not show up in logs, tracebacks or status output."""

from __future__ import annotations

import hmac


class Secret:
    """A secret text; printing, formatting or representing it shows a mask.

    It cannot be pickled or encoded by accident: what needs the text calls `reveal()`, which is easy to search for.

    Example:
        >>> password = Secret("hunter2")
        >>> f"{password}"
        '**********'
        >>> password.reveal()
        'hunter2'
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __str__(self) -> str:
        return "**********" if self._text else ""

    def __repr__(self) -> str:
        return f"Secret('{self}')"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> str:
        raise TypeError("A Secret is not pickled; reveal it where it is needed.")
