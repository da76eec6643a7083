"""Records as the portal writes them: every field is there.

The shared record types leave defaults out. The original's agents read `arguments` and `result` without asking whether
they are there, and for a SignalR client a close record without `allowReconnect` means that it may not reconnect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agent.hub.protocol import RECORD_SEPARATOR

PING = '{"type":6}' + RECORD_SEPARATOR


def call(target: str, arguments: Sequence[Any]) -> str:
    """An invocation that wants no completion."""
    return _record({"type": 1, "target": target, "arguments": list(arguments)})


def completion(invocation_id: str, *, result: Any = None, error: str | None = None) -> str:
    """The answer to an invocation: a result or an error, never both."""
    if error is not None:
        return _record({"type": 3, "invocationId": invocation_id, "error": error})
    return _record({"type": 3, "invocationId": invocation_id, "result": result})


def close(reason: str | None, *, reconnect: bool) -> str:
    """The end of the connection."""
    return _record({"type": 7, "error": reason, "allowReconnect": reconnect})


def handshake_error(reason: str) -> str:
    """The answer to a handshake that is refused."""
    return _record({"error": reason})


def _record(document: dict[str, Any]) -> str:
    return msgspec.json.encode(document).decode() + RECORD_SEPARATOR
