"""What processes cost, from /proc: memory, processor time and wake-ups of a process and all below it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes that a tree of processes takes.

    Attributes:
        pss: the kernel's proportional set size. A file's page (the interpreter, a library) that programs outside the
            tree have mapped as well counts only in part, so this falls when other Python programs run.
        alone: the same as if nothing else on the machine mapped the tree's files: what the tree needs by itself.
        rss: the sum of the resident set sizes; what processes share counts once for each.
    """

    pss: int
    alone: int
    rss: int


@dataclass(frozen=True)
class Mapping:
    """A part of a file in a process's memory.

    Attributes:
        file: device and inode.
        offset: where in the file.
        resident: bytes of it that are in memory and not this process's own copy.
    """

    file: str
    offset: str
    resident: int


@dataclass(frozen=True)
class Activity:
    """What a tree of processes has done since each began.

    Attributes:
        cpu_seconds: time on a core.
        wakeups: voluntary context switches: each is a return from a wait.
        switches: the involuntary ones too.
    """

    cpu_seconds: float
    wakeups: int
    switches: int

    def __add__(self, other: Activity) -> Activity:
        return Activity(
            self.cpu_seconds + other.cpu_seconds, self.wakeups + other.wakeups, self.switches + other.switches
        )

    def __sub__(self, earlier: Activity) -> Activity:
        return Activity(
            self.cpu_seconds - earlier.cpu_seconds, self.wakeups - earlier.wakeups, self.switches - earlier.switches
        )


def tree(pid: int, *, proc: Path = PROC) -> list[int]:
    """`pid` and every process below it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                # The command's name may hold anything, also ") 1 2".
                parent = int((entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for process in found:
        found += children.get(process, [])
    return found


def name(pid: int, *, proc: Path = PROC) -> str:
    """The command line, for a person."""
    try:
        return (proc / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def parse_sizes(text: str) -> dict[str, int]:
    """The sizes in the text of /proc/PID/smaps_rollup, in bytes."""
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if value.endswith(" kB"):
            sizes[key] = int(value.split()[0]) * 1024
    return sizes


def parse_file_mappings(text: str) -> list[Mapping]:
    """The mappings of files in the text of /proc/PID/smaps."""
    mappings: list[Mapping] = []
    place: tuple[str, str] | None = None
    resident = 0
    for line in text.splitlines():
        fields = line.split()
        if fields[0] == "Rss:":
            resident = int(fields[1]) * 1024
        elif fields[0] == "Anonymous:" and place is not None:
            mappings.append(Mapping(*place, resident - int(fields[1]) * 1024))
        elif not fields[0].endswith(":"):
            _, _, offset, device, inode = fields[:5]
            place = None if inode == "0" else (f"{device} {inode}", offset)
    return mappings


def measure_memory(pids: Iterable[int], *, proc: Path = PROC) -> Memory:
    """What these processes take together. A process that has ended counts nothing."""
    pss = rss = own = 0
    files: dict[tuple[str, str], int] = {}
    for pid in pids:
        try:
            sizes = parse_sizes((proc / str(pid) / "smaps_rollup").read_text("ascii", "replace"))
            mappings = parse_file_mappings((proc / str(pid) / "smaps").read_text("utf-8", "replace"))
        except OSError:
            continue
        pss += sizes["Pss"]
        rss += sizes["Rss"]
        # Shared only with processes forked from one another, and the tree has all of those.
        own += sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)
        for mapping in mappings:
            # The process that has most of a file's part resident has about all that any of the tree has.
            place = (mapping.file, mapping.offset)
            files[place] = max(files.get(place, 0), mapping.resident)
    return Memory(pss=pss, alone=own + sum(files.values()), rss=rss)


def measure_activity(pids: Iterable[int], *, proc: Path = PROC) -> Activity:
    """What these processes have done, all threads together. A process that has ended counts nothing."""
    total = Activity(0.0, 0, 0)
    for activity in threads(pids, proc=proc).values():
        total += activity
    return total


def threads(pids: Iterable[int], *, proc: Path = PROC) -> dict[str, Activity]:
    """What each thread of these processes has done."""
    found: dict[str, Activity] = {}
    for pid in pids:
        try:
            entries = list((proc / str(pid) / "task").iterdir())
        except OSError:
            continue
        for entry in entries:
            try:
                nanoseconds = int((entry / "schedstat").read_text("ascii").split()[0])
                status = (entry / "status").read_text("utf-8", "replace")
            except OSError:
                continue
            found[f"{pid}/{entry.name} {name(pid, proc=proc)[:60]}"] = _activity(nanoseconds, status)
    return found


def _activity(nanoseconds: int, status: str) -> Activity:
    counts = {"voluntary_ctxt_switches": 0, "nonvoluntary_ctxt_switches": 0}
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key in counts:
            counts[key] = int(value)
    return Activity(nanoseconds / 1e9, counts["voluntary_ctxt_switches"], sum(counts.values()))
