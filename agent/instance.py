"""One agent for one state directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import AbstractContextManager
from pathlib import Path

from agent.errors import AlreadyRunningError, StorageError


class InstanceLock(AbstractContextManager["InstanceLock"]):
    """Held while the agent runs; the kernel gives it back however the agent ends.

    Raises AlreadyRunningError on entering when another agent holds it, StorageError when it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> InstanceLock:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"The state directory {self._path.parent} cannot be used: {error.strerror}. "
                "Run this as the user it belongs to, or give another with --state-dir."
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise AlreadyRunningError(
                f"Another agent runs with {self._path.parent}; stop it first, or give this one its own --state-dir."
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
