"""Where things are on the node: one place that knows every file name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The agent's files, below one state directory and one runtime directory.

    `state` survives reboots; `runtime` holds sockets and may be emptied at boot.
    """

    state: Path
    runtime: Path

    @property
    def identity(self) -> Path:
        """Who this node is: portal, ids, its private key. Mode 0600; written once, at enrolment."""
        return self.state / "identity.json"

    @property
    def settings(self) -> Path:
        """The last good sign-in answer."""
        return self.state / "settings.json"

    @property
    def deployment(self) -> Path:
        """The deployment that runs: its manifest as the portal signed it."""
        return self.state / "deployment.json"

    @property
    def scripts(self) -> Path:
        """Downloaded scripts: `scripts/<sha256>/<File>.py`."""
        return self.state / "scripts"

    @property
    def packages(self) -> Path:
        """Installed packages, one folder for each set of requirements."""
        return self.state / "packages"

    @property
    def outbox(self) -> Path:
        """The outbox's database."""
        return self.state / "outbox.db"

    @property
    def spill(self) -> Path:
        """Submissions that services saved when the agent died under them; the next agent takes them in."""
        return self.state / "spill"

    @property
    def lock(self) -> Path:
        """Held by the running agent."""
        return self.state / "agent.lock"

    @property
    def control_socket(self) -> Path:
        """Where a running agent answers `outstation status`."""
        return self.runtime / "agent.sock"

    @property
    def pins_socket(self) -> Path:
        """Where the board of simulated pins listens."""
        return self.runtime / "pins.sock"


def default_state_directory() -> Path:
    """systemd's `STATE_DIRECTORY`, else `/var/lib/outstation` for root, else the XDG state directory."""
    if systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/outstation")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "outstation"


def default_runtime_directory(state: Path) -> Path:
    """systemd's `RUNTIME_DIRECTORY`, else `run/` below the state directory."""
    if systemd := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(systemd.split(":")[0])
    return state / "run"
