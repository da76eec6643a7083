"""Packages for one service alone, installed at run time with uv or pip.

Each set of requirements gets a folder of its own, `<root>/<key>/`, which a service puts first on its `sys.path`. It is
filled in a staging folder beside, synced and renamed: a folder that exists is complete, and starts again without a
network. Two services may hold different versions of one package; two with the same requirements share the folder.

    <root>/<key>/                 the packages of one set of requirements, for this Python and machine
    <root>/.staging-<key>-…/      one that is being installed, or was when the power went
    <root>/.services/<id>.json    which folder a service used last
    <root>/.locks/<key>           held alone while installing, shared while a service uses the folder
    <root>/.cache/                the installer's downloads, unless the board has its own place for them
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import site
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.files import sync_directory, write_atomically
from agent.runtime.installers import InstallerName, Job, Outcome, find_installer, reason, run
from agent.runtime.pip_settings import PipSettings, without_credentials
from agent.runtime.requirements import (
    InstalledPackages,
    PackageError,
    PackageInstallError,
    RequirementError,
    Requirements,
    ScriptMetadataError,
    parse_requirements,
    pep723_dependencies,
    site_path,
)

__all__ = [
    "PackageError",
    "PackageInstallError",
    "PackageInstaller",
    "RequirementError",
    "ScriptMetadataError",
    "activate",
    "environment_key",
    "pep723_dependencies",
]

INSTALL_TIMEOUT_SECONDS = 600.0
LOCK_POLL_SECONDS = 0.2
MARK = ".outstation.json"
"""In every installed folder: what it holds. Its time of change is when the folder was last asked for."""


class PackageInstaller:
    """Install what services require, each set of requirements once.

    Args:
        root: where the folders are made; `Paths.packages` on a node.
        python: the interpreter to install for; it must be the one that imports the packages.
        offline: never use a network: what is not there already is an error.
        log: called with one line of progress, or with the installer's last lines when it failed. Never with a secret.
        timeout_seconds: of one install (default 600).
        installer: `"uv"`, `"pip"`, or `"auto"` (default) for uv where it is found and pip elsewhere.

    From any thread; calls wait for each other.
    """

    def __init__(
        self,
        root: Path,
        *,
        python: str = sys.executable,
        offline: bool = False,
        log: Callable[[str], None],
        timeout_seconds: float = INSTALL_TIMEOUT_SECONDS,
        installer: InstallerName = "auto",
    ) -> None:
        self._root = root.absolute()
        self._python = python
        self._offline = offline
        self._log = log
        self._timeout = timeout_seconds
        self._installer: InstallerName = installer
        self._lock = threading.Lock()
        self._wanted: dict[str, Requirements] = {}
        self._folders: dict[str, Path] = {}

    def ensure(self, service_id: str, requirements: Sequence[str]) -> Path | None:
        """Make `requirements` available to a service, together with those it has asked for before in this process.

        Returns the folder to `activate`, or None when the running environment has everything. What was installed once
        is found again without a network.

        Raises RequirementError for one that is not PEP 508, PackageInstallError when installing failed.
        """
        with self._lock:
            before = self._wanted.get(service_id, {})
            wanted = {**before, **parse_requirements(requirements)}
            folder = self._folders.get(service_id)
            if not self._satisfied(folder, wanted):
                folder = self._find(service_id, wanted) or self._install(service_id, wanted, folder)
                self._remember(service_id, folder)
                self._folders[service_id] = folder
            self._wanted[service_id] = wanted
            return folder

    def collect(self, keep: set[str], budget_bytes: int) -> list[Path]:
        """Delete what is left of interrupted installs and, while more than `budget_bytes` are used, what is not needed.

        The installer's cache goes first, then environments that no service in `keep` (service ids) used last and no
        running service holds, those that were not asked for for the longest time first. Returns what was deleted.
        """
        self._discard_abandoned()
        kept = {folder for id in keep if (folder := self._recorded(id)) is not None}
        candidates = sorted(
            (folder for folder in self._environments() if folder not in kept),
            # An order, not an age: a wrong clock can only make it less clever.
            key=lambda folder: (folder / MARK).stat().st_mtime,
        )
        usage = _Usage(path for path in self._root.iterdir() if path.is_dir()) if self._root.is_dir() else _Usage([])
        deleted: list[Path] = []
        for folder in [self._root / ".cache", *candidates]:
            if usage.total_bytes <= budget_bytes:
                break
            if folder.is_dir() and self._delete(folder):
                usage.remove(folder)
                deleted.append(folder)
        return deleted

    def _satisfied(self, folder: Path | None, wanted: Requirements) -> bool:
        path = site_path(self._root, sys.path)
        return InstalledPackages([str(folder), *path] if folder else path).satisfy(wanted.values())

    def _find(self, service_id: str, wanted: Requirements) -> Path | None:
        """The folder that the service had last time, when that is still right, else one made for the same."""
        recorded = self._recorded(service_id)
        if recorded is not None and self._satisfied(recorded, wanted):
            return recorded
        made = self._root / environment_key(wanted)
        return made if _complete(made) else None

    def _install(self, service_id: str, wanted: Requirements, current: Path | None) -> Path:
        key = environment_key(wanted)
        target = self._root / key
        names = ", ".join(without_credentials(text) for text in sorted(wanted))
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked(key), self._locked("cache", shared=True):
                if _complete(target):  # Another service was first.
                    return target
                self._discard_abandoned(key)
                with tempfile.TemporaryDirectory(
                    prefix=f".staging-{key}-", dir=self._root, ignore_cleanup_errors=True
                ) as staging:
                    self._fill(service_id, names, wanted, Path(staging), current)
                    # One call for thousands of small files: an SD card takes seconds for it, not minutes.
                    os.sync()
                    (Path(staging) / "packages").rename(target)
                    sync_directory(self._root)
        except OSError as error:
            raise PackageInstallError(
                f"The packages of {service_id} ({names}) could not be installed: "
                f"{error.strerror or error} ({self._root}). Free some space or correct its permissions."
            ) from error
        return target

    def _fill(self, service_id: str, names: str, wanted: Requirements, staging: Path, current: Path | None) -> None:
        settings = PipSettings()
        installer = find_installer(self._installer, settings)
        self._log(f"Installing {names} for {service_id} with {installer.name}.")
        started = time.monotonic()
        packages, scratch, requirements = staging / "packages", staging / "tmp", staging / "requirements.txt"
        for folder in (packages, scratch):
            folder.mkdir()
        requirements.write_text("".join(f"{text}\n" for text in sorted(wanted)), "utf-8")
        outcome = Outcome(status=1, tail=[])
        for constraints in _constraints(staging, current):
            job = Job(
                requirements=requirements,
                constraints=constraints,
                target=packages,
                scratch=scratch,
                cache=self._root / ".cache",
                python=self._python,
                offline=self._offline,
            )
            outcome = run(
                installer.command(job),
                installer.environment(job, os.environ),
                timeout_seconds=self._timeout,
                on_wait=lambda line: self._log(
                    f"Still installing {names} for {service_id} after {time.monotonic() - started:.0f} s: {line}"
                ),
            )
            if outcome.status == 0 or not outcome.conflict:
                break
        self._check(service_id, names, outcome)
        installed = sorted(
            f"{each.name} {each.version}" for each in importlib.metadata.distributions(path=[str(packages)])
        )
        mark = {"requirements": names, "packages": installed, "python": sys.version.split()[0]}
        (packages / MARK).write_text(json.dumps(mark, indent=1), "utf-8")
        self._log(f"Installed {', '.join(installed)} for {service_id} in {time.monotonic() - started:.1f} s.")

    def _check(self, service_id: str, names: str, outcome: Outcome) -> None:
        if outcome.status == 0 and not outcome.timed_out:
            return
        self._log("\n".join(outcome.tail))
        why = f"it took longer than {self._timeout:.0f} s" if outcome.timed_out else reason(outcome)
        raise PackageInstallError(f"The packages of {service_id} ({names}) could not be installed: {why}.")

    # --- Which folder a service used ------------------------------------------------------------------------------

    def _record(self, service_id: str) -> Path:
        return self._root / ".services" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', service_id)}.json"

    def _recorded(self, service_id: str) -> Path | None:
        try:
            content = json.loads(self._record(service_id).read_text("utf-8"))
            folder = self._root / Path(content["folder"]).name
        except (OSError, ValueError, KeyError, TypeError):
            return None  # Only a hint: without it the folder is found by its requirements.
        return folder if _complete(folder) else None

    def _remember(self, service_id: str, folder: Path) -> None:
        with contextlib.suppress(OSError):
            os.utime(folder / MARK)
        if self._recorded(service_id) != folder:
            with contextlib.suppress(OSError):  # A full disk must not stop a service whose packages are there.
                write_atomically(self._record(service_id), json.dumps({"folder": folder.name}).encode())

    # --- Folders and locks ----------------------------------------------------------------------------------------

    def _environments(self) -> list[Path]:
        if not self._root.is_dir():
            return []
        return [path for path in self._root.iterdir() if not path.name.startswith(".") and _complete(path)]

    def _discard_abandoned(self, key: str | None = None) -> None:
        """Delete staging folders whose installer died: those whose lock this process holds, or all that are free."""
        for path in self._root.glob(f".staging-{key or '*'}-*"):
            if key is not None:
                shutil.rmtree(path, ignore_errors=True)
            else:
                with self._try_locked(path.name.split("-")[1]) as free:
                    if free:
                        shutil.rmtree(path, ignore_errors=True)
        if key is None:
            for path in self._root.glob(".deleted-*"):
                shutil.rmtree(path, ignore_errors=True)

    def _delete(self, folder: Path) -> bool:
        """Rename, then delete, so that half a folder is never found; False when it is in use."""
        with self._try_locked(folder.name.removeprefix(".")) as free:
            if not free:
                return False
            aside = self._root / f".deleted-{folder.name.removeprefix('.')}-{os.getpid()}"
            folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            return True

    @contextlib.contextmanager
    def _locked(self, name: str, *, shared: bool = False) -> Iterator[None]:
        descriptor = _open_lock(self._root, name)
        try:
            deadline = time.monotonic() + self._timeout
            waiting = False
            while not _try_lock(descriptor, shared=shared):
                if time.monotonic() > deadline:
                    raise PackageInstallError(
                        f"Another service has been installing the same packages for {self._timeout:.0f} s; "
                        "try again when it is through."
                    )
                if not waiting:
                    self._log("Waiting for another service that installs the same packages.")
                    waiting = True
                time.sleep(LOCK_POLL_SECONDS)  # flock has no time limit of its own
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _try_locked(self, name: str) -> Iterator[bool]:
        descriptor = _open_lock(self._root, name)
        try:
            yield _try_lock(descriptor)
        finally:
            os.close(descriptor)


def environment_key(wanted: Requirements) -> str:
    """The folder's name for a set of requirements: a hash of them, this Python's version and this platform."""
    platform = sysconfig.get_config_var("SOABI") or sysconfig.get_platform()
    parts = [*sorted(wanted), f"{sys.version_info.major}.{sys.version_info.minor}", platform]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _complete(folder: Path) -> bool:
    return (folder / MARK).is_file()


def _constraints(staging: Path, current: Path | None) -> Iterator[Path | None]:
    """First with the versions that the process has imported from perhaps, then without, when those do not fit."""
    if current is not None:
        file = staging / "constraints.txt"
        file.write_text(
            "".join(f"{each.name}=={each.version}\n" for each in importlib.metadata.distributions(path=[str(current)])),
            "utf-8",
        )
        yield file
    yield None


def _open_lock(root: Path, name: str) -> int:
    folder = root / ".locks"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(descriptor: int, *, shared: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Usage:
    """Disk space by folder, a file with several names (as uv makes them) counted once."""

    def __init__(self, folders: Iterator[Path] | list[Path]) -> None:
        self._files = {folder: _files(folder) for folder in folders}
        self._names: Counter[tuple[int, int]] = Counter()
        self._sizes: dict[tuple[int, int], int] = {}
        for files in self._files.values():
            for file, size in files:
                self._names[file] += 1
                self._sizes[file] = size
        self.total_bytes = sum(self._sizes.values())

    def remove(self, folder: Path) -> None:
        for file, size in self._files.pop(folder):
            self._names[file] -= 1
            if not self._names[file]:
                self.total_bytes -= size


def _files(folder: Path) -> list[tuple[tuple[int, int], int]]:
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - thousands of files
                found.append(((status.st_dev, status.st_ino), status.st_blocks * 512))
    return found


# --- In the service's process ---------------------------------------------------------------------------------------

_in_use: dict[Path, int] = {}
"""Folders on this process's `sys.path`, with the lock that keeps them from being collected until it ends."""


def activate(folder: Path) -> list[str]:
    """Put `folder` first on `sys.path`, so that its packages and their metadata are found before all others.

    `.pth` files in it are honoured as in site-packages. A folder of the same root that was activated before is taken
    off the path; what was imported from it stays imported. Returns one sentence for each package of which this process
    has another version imported already, which it goes on using.
    """
    text = str(folder)
    if folder not in _in_use:
        with contextlib.suppress(OSError):  # A file system that cannot be written is not collected either.
            descriptor = _open_lock(folder.parent, folder.name)
            _try_lock(descriptor, shared=True)
            _in_use[folder] = descriptor
    before = set(sys.path)
    site.addsitedir(text)
    added = [entry for entry in sys.path if entry not in before and entry != text]
    others = [entry for entry in sys.path if entry != text and entry not in added and not _inside(entry, folder.parent)]
    sys.path[:] = [text, *added, *others]
    importlib.invalidate_caches()
    _widen_namespaces(folder)
    return _imported_already(folder)


def _inside(entry: str, folder: Path) -> bool:
    return Path(entry).is_relative_to(folder)


def _widen_namespaces(folder: Path) -> None:
    """Let packages that share their name with others (pkgutil's way; PEP 420's needs no help) find their new parts."""
    for part in folder.iterdir():
        loaded = sys.modules.get(part.name)
        path = getattr(loaded, "__path__", None)
        if not isinstance(path, list) or str(part) in path or not part.is_dir():
            continue
        start = part / "__init__.py"
        if not start.is_file() or re.search(r"extend_path|declare_namespace", start.read_text("utf-8", "replace")):
            path.insert(0, str(part))


def _imported_already(folder: Path) -> list[str]:
    found: list[str] = []
    for package in importlib.metadata.distributions(path=[str(folder)]):
        for name in sorted(_top_level(package)):
            file = getattr(sys.modules.get(name), "__file__", None)
            if not file or Path(file).is_relative_to(folder):
                continue
            home = Path(file).parent.parent if Path(file).stem == "__init__" else Path(file).parent
            other = InstalledPackages([str(home)]).find(package.name)
            if other is not None and other.version == package.version:
                continue
            version = other.version if other is not None else "of unknown version"
            found.append(
                f"{package.name} {package.version} was installed, but {name} {version} from {home} is imported already "
                "and stays in use in this process: name the requirement in the script's '# /// script' header, "
                "or ask for it before anything imports it."
            )
            break
    return found


def _top_level(package: importlib.metadata.Distribution) -> set[str]:
    names: set[str] = set()
    for file in package.files or ():
        first = file.parts[0]
        if first.endswith((".dist-info", ".egg-info", ".pth", ".data")) or first in ("..", "bin", "__pycache__"):
            continue
        names.add(first.partition(".")[0])
    return names
