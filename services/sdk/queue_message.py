"""The message that services exchange."""

from __future__ import annotations

from typing import Any


class QueueMessage:
    """A message from one service to a method of another.

    Example:
        await self.queue.put(QueueMessage(self.id, "heating_py", "set_target", {"celsius": 21}))

    Args:
        source: the id of the service that sends it.
        destination: the id of the service it is for, in any case, with or without `_py`; `*` is every service.
        action: the name of the method to call there.
        message: what the method gets.

    Attributes:
        message: a **one-element tuple**: handlers read `args.message[0]`. It has been so from the first day, and
            services in the field depend on it.
    """

    __slots__ = ("action", "destination", "message", "source")

    def __init__(self, source: str, destination: str, action: str, message: Any) -> None:
        self.source = source
        self.destination = destination
        self.action = action
        self.message = (message,)

    def __repr__(self) -> str:
        return (
            f"QueueMessage(source={self.source!r}, destination={self.destination!r}, action={self.action!r}, "
            f"message={self.message!r})"
        )
