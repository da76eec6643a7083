"""Gives back the disk space of packages that nothing uses any more.

In a process of its own: looking at thousands of files takes an SD card seconds, and what installs packages is more than
the agent wants to have in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from agent.runtime.forking import service_environment

log = logging.getLogger(__name__)

BUDGET_BYTES = 2 << 30
"""What all packages and the installer's downloads may take together."""


async def collect_packages(root: Path, keep: Iterable[str], *, budget_bytes: int = BUDGET_BYTES) -> None:
    """Delete what is not needed while more than `budget_bytes` are used (default 2 GiB).

    Args:
        root: where packages are; `Paths.packages` on a node.
        keep: ids of services whose packages stay.

    Never raises for what cannot be deleted. Cancelling ends the process.
    """
    if not await asyncio.to_thread(root.is_dir):
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "agent.runtime.collecting", str(root), str(budget_bytes), *keep),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=service_environment(),
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    for line in said.decode(errors="replace").splitlines():
        log.info("Packages that nothing uses were deleted: %s.", line, extra={"action": "packages_collected"})


def main() -> int:
    """Run the process: print a line for each folder that was deleted."""
    from agent.runtime.packages import PackageInstaller

    parser = argparse.ArgumentParser(description="Deletes packages that nothing uses; started by the agent.")
    parser.add_argument("root", type=Path)
    parser.add_argument("budget_bytes", type=int)
    parser.add_argument("keep", nargs="*")
    arguments = parser.parse_args()
    installer = PackageInstaller(arguments.root, log=lambda _: None)
    try:
        deleted = installer.collect(set(arguments.keep), arguments.budget_bytes)
    except OSError as error:
        print(f"{arguments.root} cannot be tidied up: {error}", file=sys.stderr)  # noqa: T201 - the agent's own log
        return 1
    for folder in deleted:
        print(folder.name)  # noqa: T201 - read by the agent
    return 0


if __name__ == "__main__":
    sys.exit(main())
