"""What every benchmark shares: options, figures, medians and the table."""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TABLE_BEGINS = "<!-- table: written by `python -m bench --write` -->"
TABLE_ENDS = "<!-- table ends -->"


@dataclass(frozen=True)
class Options:
    """What the command line said.

    Attributes:
        runs: how often each thing is measured (default 5); the figures are the medians.
        quick: tiny sizes, to see that a benchmark works; its figures mean nothing.
    """

    runs: int = 5
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """`full`, or `quick` when only the machinery is tried."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Aim:
    """What a figure should come to; `of` says whether the figure itself counts or its ratio to the peer's."""

    of: Literal["figure", "ratio"]
    bound: Literal["least", "most"]
    value: float

    def met(self, figure: float, ratio: float | None) -> bool:
        """Whether a figure (or its ratio) is within the bound."""
        measured = figure if self.of == "figure" else ratio
        if measured is None:
            return False
        return measured >= self.value if self.bound == "least" else measured <= self.value


@dataclass(frozen=True)
class Figure:
    """One measured thing: a value a run, beside a peer's or limit's value of the same run.

    Attributes:
        what: names it, for a person.
        unit: `/s`, `ms`, `µs`, `MB`, `%` or `` for a count.
        values: one a run.
        peer: names what was measured beside it.
        peer_values: one a run, in the order of `values`.
        note: a short remark for the last column.
    """

    what: str
    unit: str
    values: Sequence[float]
    peer: str = ""
    peer_values: Sequence[float] = ()
    aim: Aim | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The middle of the runs."""
        return statistics.median(self.values)

    @property
    def ratio(self) -> float | None:
        """The median of each run's own ratio to the peer: what slows one of a run slows the other too."""
        pairs = [(ours, peers) for ours, peers in zip(self.values, self.peer_values, strict=False) if peers]
        return statistics.median(ours / peers for ours, peers in pairs) if pairs else None

    def row(self) -> str:
        """A row of the table."""
        peer = ""
        if self.peer_values:
            peer = f"{self.peer}: {amount(statistics.median(self.peer_values), self.unit)}"
        ratio = self.ratio
        cells = [
            self.what,
            f"**{amount(self.median, self.unit)}**",
            f"{amount(min(self.values), self.unit)} to {amount(max(self.values), self.unit)}",
            peer,
            "" if ratio is None else f"{ratio:.2f}",
            self._verdict(),
        ]
        return f"| {' | '.join(cells)} |"

    def _verdict(self) -> str:
        aim = self.aim
        if aim is None:
            return self.note
        sign = "≥" if aim.bound == "least" else "≤"
        wanted = f"ratio {sign} {aim.value:g}" if aim.of == "ratio" else f"{sign} {amount(aim.value, self.unit)}"
        text = f"{wanted}: {'met' if aim.met(self.median, self.ratio) else '**missed**'}"
        return f"{text}; {self.note}" if self.note else text


@dataclass
class Result:
    """What a benchmark found.

    Attributes:
        load: the machine's load average over the last minute, before the first and after the last run.
    """

    name: str
    figures: list[Figure] = field(default_factory=list)
    load: tuple[float, float] = (0.0, 0.0)
    runs: int = 0


def amount(value: float, unit: str) -> str:
    """A figure as people write it: three digits that count, then the unit."""
    if not math.isfinite(value):
        text = "none"
    elif abs(value) >= 1000:
        magnitude = 10 ** (math.floor(math.log10(abs(value))) - 2)
        text = f"{round(value / magnitude) * magnitude:,.0f}"
    elif value == 0 or abs(value) >= 100 or (unit == "" and value == round(value)):
        text = f"{value:.0f}"
    else:
        text = f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"
    return f"{text}{unit}" if unit in ("", "/s") else f"{text} {unit}"


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` per cent of `values` are not above (nearest rank). Raises ValueError for no values."""
    if not values:
        raise ValueError("There is no percentile of nothing.")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part / 100) - 1)]


def progress(text: str) -> None:
    """Say what goes on, on standard error."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """The machine in one line."""
    model = "unknown processor"
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(("model name", "Model", "Hardware")):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({model}, {platform.machine()}), {memory:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def load() -> float:
    """How many processes wanted a core over the last minute, this one included."""
    return os.getloadavg()[0]


def table(results: Sequence[Result]) -> str:
    """All figures as Markdown, with the machine and its load."""
    lines = [f"Machine: {machine()}; everything on loopback, files in the page cache."]
    for result in results:
        before, after = result.load
        lines += [
            "",
            f"### {result.name}",
            "",
            f"Medians of {result.runs} runs; load average {before:.2f} before, {after:.2f} after.",
            "",
            "| what | median | all runs | beside it, in the same run | ratio | aim |",
            "| --- | --- | --- | --- | --- | --- |",
            *(figure.row() for figure in result.figures),
        ]
    return "\n".join(lines) + "\n"


def replace_table(document: str, text: str, *, only: Sequence[str] | None = None) -> str:
    """`document` with what is between the markers replaced by `text`.

    With `only`, sections of `document` that are not named there stay. Raises ValueError without markers.
    """
    head, begins, rest = document.partition(TABLE_BEGINS)
    old, ends, tail = rest.partition(TABLE_ENDS)
    if not begins or not ends:
        raise ValueError(f"There is no `{TABLE_BEGINS}` … `{TABLE_ENDS}` in the document.")
    if only is not None:
        text = _merged(old, text, only)
    return f"{head}{TABLE_BEGINS}\n{text}{TABLE_ENDS}{tail}"


def _merged(old: str, new: str, names: Sequence[str]) -> str:
    old_sections, new_sections = _sections(old), _sections(new)
    sections = {name: new_sections.get(name, text) for name, text in old_sections.items()}
    sections |= {name: new_sections[name] for name in names if name in new_sections}
    sections[""] = new_sections[""]
    return "\n".join(text.strip("\n") + "\n" for text in sections.values())


def _sections(text: str) -> dict[str, str]:
    """The table's text by benchmark; "" is what stands before the first."""
    sections = {"": ""}
    name = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("### "):
            name = line[4:].strip()
            sections[name] = ""
        sections[name] += line
    return sections
