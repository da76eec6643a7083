"""What a service hands over, as bytes that can leave the node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True, slots=True)
class Payload:
    """The bytes of a message to the cloud, and what they are."""

    content: bytes
    content_type: str
    content_encoding: str


def encode(message: Any) -> Payload:
    """Make the bytes that go to the cloud.

    Text and bytes are sent as they are, as `application/json` when they parse as that; anything else becomes JSON.
    Raises ValueError, naming the type that stands in the way, for what JSON cannot hold.
    """
    if isinstance(message, str):
        try:
            content = message.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The text cannot be sent: it has a character that UTF-8 cannot hold ({error})."
            ) from error
        return Payload(content, "application/json" if _is_json(message) else "text/plain", "utf-8")
    if isinstance(message, (bytes, bytearray, memoryview)):
        content = bytes(message)
        if _is_json(content):
            return Payload(content, "application/json", "utf-8")
        return Payload(content, "application/octet-stream", "")
    return Payload(_encoder_encode(message).encode(), "application/json", "utf-8")


def text_of(message: Any) -> str:
    """Anything as text; never raises for what it is given."""
    if isinstance(message, str):
        return message
    try:
        return str(message)
    except Exception as error:  # noqa: BLE001 - a service's own __str__ may raise anything; a log line must not
        return f"<{type(message).__name__} that cannot be shown: {type(error).__name__}>"


def _encoder_encode(message: Any) -> str:
    try:
        # ensure_ascii keeps lone surrogates, which Python strings can hold and UTF-8 cannot, as escapes.
        return json.dumps(message, allow_nan=False, default=_refuse)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The message cannot be sent as JSON: {error}. Send text, bytes, numbers, lists or dicts of them."
        ) from error
    except RecursionError as error:
        raise ValueError("The message cannot be sent as JSON: it is nested too deeply, or contains itself.") from error


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"it contains a {type(value).__module__}.{type(value).__qualname__}")


def _is_json(text: str | bytes) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, TypeError, RecursionError):
        return False
    return True
