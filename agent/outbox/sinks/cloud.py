"""What comes back from a cloud: device twin, direct methods, messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec


class TwinUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """The device twin, whole: at each connection, and after each change of its desired properties."""

    desired: dict[str, Any]
    """With `$version`."""
    reported: dict[str, Any]
    """As it was at the connection, with `$version`."""


class MethodCall(msgspec.Struct, frozen=True, kw_only=True):
    """A direct method that somebody calls and waits for."""

    name: str
    payload: Any = None


class MethodAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller of a direct method gets."""

    status: int = 200
    payload: Any = None
    """Anything JSON can hold."""


class CloudMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A cloud-to-device message."""

    payload: bytes
    properties: dict[str, str] = {}
    message_id: str = ""
    correlation_id: str = ""
    content_type: str = ""


CloudEvent = TwinUpdate | MethodCall | CloudMessage

CloudHandler = Callable[[CloudEvent], Awaitable[MethodAnswer | None]]
"""Called on the loop: twin updates and messages one after the other, methods each in a task of its own.

The answer counts for a MethodCall alone; None means that there is no such method.
"""
