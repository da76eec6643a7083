"""Disk space that is held back, so that a full disk can be worked off."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 8 << 20
LEAST_BYTES: Final = 64 << 10
PART_OF_DISK: Final = 16


class Reserve:
    """A file that takes up space until it is needed. In the writer's thread.

    Deleting acknowledged messages needs space too: for the journal, and to move what is in the journal into the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        disk = os.statvfs(path.parent)
        self.size_bytes = max(LEAST_BYTES, min(MOST_BYTES, disk.f_blocks * disk.f_frsize // PART_OF_DISK))
        """8 MiB, or a sixteenth of a smaller disk."""
        self.journal_bytes = self.size_bytes // 2
        """What the journal may take; moving it into the file takes as much again."""

    def free_bytes(self) -> int:
        """What the disk has left beside the reserve; 0 when it does not answer."""
        try:
            disk = os.statvfs(self._path.parent)
        except OSError:
            return 0
        return disk.f_bavail * disk.f_frsize

    def hold(self) -> bool:
        """Take the space up; False when the disk has not got it. Where a file cannot be that large, none is held."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self.size_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.release()
            return error.errno != errno.ENOSPC
        return True

    def release(self) -> bool:
        """Let the space go; whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
