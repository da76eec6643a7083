"""Submissions that services saved when the agent died under them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from agent.errors import StorageError
from agent.outbox.message import Submission
from agent.paths import Paths

log = logging.getLogger(__name__)

_decoder = msgspec.msgpack.Decoder(list[Submission])
_SUFFIX = ".msgpack"
_DAMAGED = ".damaged"

SubmitBatch = Callable[[Sequence[Submission]], Awaitable[object]]


async def take_in_spills(paths: Paths, submit_many: SubmitBatch, *, service: str | None = None) -> int:
    """Hand what services saved to the outbox, then delete the files; returns how many messages that were.

    Each message carries its producer and number, so one that the outbox has already, because the agent died between the
    commit and the acknowledgement or between the commit here and the deletion, is not stored twice. A file that cannot
    be read is set aside; one that cannot be stored now stays for the next time.

    Args:
        service: take in this service's files only.
    """
    taken = 0
    for path, submissions in await asyncio.to_thread(_read, paths.spill, service):
        try:
            await submit_many(submissions)
        except StorageError as error:
            log.error("Saved messages in %s stay there until they can be stored: %s", path, error)
            return taken
        await asyncio.to_thread(path.unlink, missing_ok=True)
        taken += len(submissions)
        log.info(
            "%d messages that %s saved were taken in.",
            len(submissions),
            _service_of(path),
            extra={"action": "spill_taken_in"},
        )
    return taken


def _read(folder: Path, service: str | None) -> list[tuple[Path, list[Submission]]]:
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        if service is not None and _service_of(path) != service:
            continue
        try:
            found.append((path, _decoder.decode(path.read_bytes())))
        except msgspec.MsgspecError as error:
            _set_aside(path, error)
        except OSError as error:
            log.error("Saved messages in %s cannot be read: %s", path, error.strerror)
    return found


def _set_aside(path: Path, reason: Exception) -> None:
    aside = path.with_suffix(_DAMAGED)
    try:
        path.replace(aside)
    except OSError as error:
        log.error("Saved messages in %s cannot be read, nor set aside: %s", path, error.strerror)
    else:
        log.error("Saved messages cannot be read and were set aside as %s: %s", aside, reason)


def _service_of(path: Path) -> str:
    return path.stem.rpartition("-")[0]
