"""uv and pip, as they are started for one install, and what they say when they fail."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from agent.runtime.pip_settings import PipSettings, without_credentials
from agent.runtime.requirements import PackageInstallError

PROGRESS_SECONDS = 15.0
"""A long install says that it goes on this often."""
TAIL_LINES = 60
"""Of the installer's output that are kept for the log."""
TERMINATE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL for an installer that takes too long."""

InstallerName = Literal["auto", "uv", "pip"]
_CONFLICT_SIGNS = ("No solution found", "ResolutionImpossible")


@dataclass(frozen=True, slots=True)
class Job:
    """One install: where from, where to."""

    requirements: Path
    """A requirements file; not arguments, which any user of the machine can read."""
    constraints: Path | None
    target: Path
    scratch: Path
    """On the same file system as `target`; `/tmp` of a small board may be too small for a wheel."""
    cache: Path
    python: str
    offline: bool


class Installer(Protocol):
    """A program that fills a folder with packages."""

    name: str

    def command(self, job: Job) -> list[str]:
        """The command line."""

    def environment(self, job: Job, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment to start it with, made from `environ`."""


class Uv:
    """uv, told the board's pip configuration."""

    name = "uv"

    def __init__(self, program: str, settings: PipSettings) -> None:
        self._program = program
        self._settings = settings

    def command(self, job: Job) -> list[str]:
        """The command line."""
        command = [self._program, "pip", "install", "--python", job.python, "--target", str(job.target)]
        command += ["--requirements", str(job.requirements), *self._settings.uv_arguments()]
        if job.constraints is not None:
            command += ["--constraints", str(job.constraints)]
        return [*command, "--offline"] if job.offline else command

    def environment(self, job: Job, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment to start it with."""
        own = {
            "NO_COLOR": "1",
            "TMPDIR": str(job.scratch),
            "UV_CACHE_DIR": environ.get("UV_CACHE_DIR") or str(job.cache / "uv"),
            # Not hard links into the cache: a service that writes into its own packages must not change another's.
            "UV_LINK_MODE": environ.get("UV_LINK_MODE") or "copy",
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "never",
        }
        return {**environ, **self._settings.for_uv(environ), **own}


class Pip:
    """The pip of the Python that the service runs in."""

    name = "pip"

    def __init__(self, settings: PipSettings) -> None:
        self._settings = settings

    def command(self, job: Job) -> list[str]:
        """The command line."""
        command = [job.python, "-m", "pip", "install", "--target", str(job.target)]
        command += ["--requirement", str(job.requirements), "--progress-bar", "off"]
        if job.constraints is not None:
            command += ["--constraint", str(job.constraints)]
        return [*command, "--no-index"] if job.offline else command

    def environment(self, job: Job, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment to start it with; what a board may have set against `--target` is switched off."""
        own = {
            "NO_COLOR": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_NO_WARN_SCRIPT_LOCATION": "1",
            "PIP_REQUIRE_VIRTUALENV": "0",
            "PIP_ROOT_USER_ACTION": "ignore",
            "PIP_USER": "0",
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(job.scratch),
        }
        if not self._settings.get("cache-dir"):
            own["PIP_CACHE_DIR"] = str(job.cache / "pip")
        return {**environ, **own}


def find_installer(wanted: InstallerName, settings: PipSettings) -> Installer:
    """uv where there is one for this board, else pip. Raises PackageInstallError when there is neither."""
    if wanted in ("auto", "uv") and (program := _find_uv()):
        return Uv(program, settings)
    if wanted in ("auto", "pip") and importlib.util.find_spec("pip") is not None:
        return Pip(settings)
    missing = {"auto": "Neither uv nor pip is", "uv": "uv is not", "pip": "pip is not"}[wanted]
    raise PackageInstallError(f"{missing} installed on this node: install uv, or the system's python3-pip.")


def _find_uv() -> str | None:
    if program := shutil.which("uv"):
        return program
    try:
        # The wheel's program is beside the interpreter, which a service unit's PATH does not name.
        from uv import find_uv_bin
    except ImportError:
        return None
    try:
        return os.fspath(find_uv_bin())
    except FileNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an installer ended."""

    status: int
    tail: list[str]
    timed_out: bool = False

    @property
    def conflict(self) -> bool:
        """The installer found no set of versions that fits."""
        return any(sign in line for line in self.tail for sign in _CONFLICT_SIGNS)


def run(
    command: Sequence[str], environment: Mapping[str, str], *, timeout_seconds: float, on_wait: Callable[[str], None]
) -> Outcome:
    """Run an installer in a process group of its own and keep the end of its output.

    Args:
        timeout_seconds: after this it is ended, with everything that it started.
        on_wait: called with its last line each 15 seconds.

    Raises OSError when it cannot be started.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    process = subprocess.Popen(  # noqa: S603 - a list, and the program is ours
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        timed_out = not _follow(process, tail, timeout_seconds, on_wait)
    finally:
        _end(process)
    return Outcome(status=process.returncode, tail=list(tail), timed_out=timed_out)


def _follow(
    process: subprocess.Popen[bytes], tail: deque[str], timeout_seconds: float, on_wait: Callable[[str], None]
) -> bool:
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_seconds
    progress = time.monotonic() + PROGRESS_SECONDS
    rest = b""
    with selectors.DefaultSelector() as selector, process.stdout as output:
        selector.register(output, selectors.EVENT_READ)
        while (now := time.monotonic()) < deadline:
            if now >= progress:
                on_wait(tail[-1] if tail else "")
                progress = now + PROGRESS_SECONDS
            if not selector.select(min(deadline, progress) - now):
                if process.poll() is not None:
                    return True  # Something that it left behind holds its output open.
                continue
            chunk = os.read(output.fileno(), 65536)
            *lines, rest = (rest + chunk).split(b"\n")
            if not chunk and rest:
                lines.append(rest)
            tail.extend(_clean(line) for line in lines if line.strip())
            if not chunk:
                # Its output is closed; it has little left to do, and `_end` sees to it if it stays.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
                return process.returncode is not None
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the installer and of what it started."""
    for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def _clean(line: bytes) -> str:
    return without_credentials(line.decode("utf-8", "replace").rstrip())[:2000]


# --- What they say --------------------------------------------------------------------------------------------------


def reason(outcome: Outcome) -> str:
    """The installer's own reason for its failure, in one line."""
    if outcome.status < 0 and not outcome.timed_out:
        return f"the installer was ended by {signal.Signals(-outcome.status).name}"
    found = _uv_reason(outcome.tail) or _pip_reason(outcome.tail)
    return (found or (outcome.tail[-1].strip() if outcome.tail else "it said nothing")).rstrip(". ")


def _uv_reason(tail: Sequence[str]) -> str:
    """uv draws a chain: `error: …` (before 0.9: `× …`), then `cause: …` (`Caused by: …`, `╰─▶ …`), then hints."""
    head = ""
    causes: list[str] = []
    for line in tail:
        text = line.strip()
        if match := re.match(r"(?:error:|×)\s*(.*)", text):
            head, causes = match[1], []
        elif match := re.match(r"(?:cause:|Caused by:|[├╰]─▶)\s*(.*)", text):
            causes.append(match[1])
        elif re.match(r"(?:hint:|help:|warning:)", text):
            break
        elif causes and line.startswith(" "):
            causes[-1] += " " + text.lstrip("│ ")
    if head.startswith("No solution found") and causes:
        return causes[0]
    return ": ".join([head, *causes[-1:]]) if head else ""


def _pip_reason(tail: Sequence[str]) -> str:
    errors = [line.removeprefix("ERROR: ") for line in tail if line.startswith("ERROR: ")]
    # The first says what happened; these only say that it did.
    telling = [line for line in errors if not line.startswith(("ResolutionImpossible", "No matching distribution"))]
    if not errors:
        return next((line for line in reversed(tail) if "Error: " in line or "No module named" in line), "")
    return (telling or errors)[0]
