"""Faults on demand: what a test makes the emulator do to its devices."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec

from emulator.errors import MessageInvalidError


class FaultSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All faults; the default is none.

    delay_puback_ms: acknowledge telemetry so much later (0 to 600,000).
    drop_pubacks: store telemetry and never acknowledge it.
    refuse_connections: "tcp" closes each new connection before TLS; 1 to 5 answers CONNECT with that code
        (3: the hub is unavailable, 5: not authorised); null accepts.
    cut_after: cut each link when its n-th telemetry message (counted from now) is stored, instead of acknowledging
        it; null never.
    frozen: read nothing, write nothing and take no connection, as a hub that hangs; the HTTP API goes on.
    """

    delay_puback_ms: float = 0.0
    drop_pubacks: bool = False
    refuse_connections: Literal["tcp"] | int | None = None
    cut_after: int | None = None
    frozen: bool = False


class Faults:
    """The faults in force. For the loop only."""

    def __init__(self) -> None:
        self.settings = FaultSettings()
        self.generation = 0
        """Raised by each change, so that a link starts to count anew."""
        self._running = asyncio.Event()
        self._running.set()

    def change(self, **changes: Any) -> FaultSettings:
        """Change the faults that are named, keep the others. Raises MessageInvalidError with nothing changed."""
        try:
            settings = msgspec.convert({**msgspec.to_builtins(self.settings), **changes}, FaultSettings)
        except msgspec.ValidationError as error:
            raise MessageInvalidError(f"The faults cannot be set: {error}.") from error
        if not 0 <= settings.delay_puback_ms <= 600_000:
            raise MessageInvalidError("delay_puback_ms must be between 0 and 600000.")
        if isinstance(settings.refuse_connections, int) and not 1 <= settings.refuse_connections <= 5:
            raise MessageInvalidError('refuse_connections must be "tcp", a CONNACK code from 1 to 5, or null.')
        if settings.cut_after is not None and settings.cut_after < 1:
            raise MessageInvalidError("cut_after must be at least 1, or null.")
        self.settings = settings
        self.generation += 1
        if settings.frozen:
            self._running.clear()
        else:
            self._running.set()
        return settings

    def clear(self) -> None:
        """End every fault."""
        self.change(**msgspec.to_builtins(FaultSettings()))

    async def thawed(self) -> None:
        """Wait until the emulator is not frozen."""
        await self._running.wait()
