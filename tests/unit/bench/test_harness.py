"""What the benchmarks compute. Their figures are nobody's test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import harness, processes
from bench.harness import Aim, Figure, Result

SMAPS = """\
5594-5596 r--p 00000000 fe:00 26386                     /usr/bin/thing with spaces
Size:                  8 kB
Rss:                   8 kB
Pss:                   4 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
5596-5599 rw-p 00002000 fe:00 26386                     /usr/bin/thing with spaces
Rss:                  12 kB
Pss:                  12 kB
Anonymous:             8 kB
VmFlags: rd mr mw me
7fad-7fae rw-p 00000000 00:00 0                          [heap]
Rss:                 100 kB
Pss:                  60 kB
Anonymous:           100 kB
VmFlags: rd mr mw me
"""
ROLLUP = """\
5594-7fae ---p 00000000 00:00 0                          [rollup]
Rss:                 120 kB
Pss:                  76 kB
Pss_Anon:             68 kB
Pss_File:              8 kB
Pss_Shmem:             0 kB
Anonymous:           108 kB
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with 10 → 11, 12 → 13 and a stranger, 14."""
    for pid, parent in ((10, 1), (11, 10), (12, 10), (13, 12), (14, 1)):
        folder = tmp_path / str(pid)
        thread = folder / "task" / str(pid)
        thread.mkdir(parents=True)
        (folder / "stat").write_text(f"{pid} (a ) 7 1 name) S {parent} 0 0")
        (folder / "cmdline").write_bytes(b"python\0-m\0thing\0")
        (folder / "smaps").write_text(SMAPS)
        (folder / "smaps_rollup").write_text(ROLLUP)
        (thread / "schedstat").write_text("1500000000 7 3")
        (thread / "status").write_text("Name:\tx\nvoluntary_ctxt_switches:\t20\nnonvoluntary_ctxt_switches:\t5\n")
    (tmp_path / "self").mkdir()
    return tmp_path


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert harness.percentile(values, 50) == 50
    assert harness.percentile(values, 99) == 99
    assert harness.percentile(values, 100) == 100
    assert harness.percentile([7.0], 1) == 7
    with pytest.raises(ValueError, match="nothing"):
        harness.percentile([], 50)


def test_ratio_is_the_median_of_each_runs_own_ratio() -> None:
    figure = Figure("messages", "/s", [100, 10, 300], "peer", [200, 40, 300])
    assert figure.median == 100
    assert figure.ratio == 0.5


def test_figure_without_a_peer_has_no_ratio() -> None:
    assert Figure("messages", "/s", [1, 2, 3]).ratio is None
    assert Figure("messages", "/s", [1.0], "peer", [0.0]).ratio is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (278_671, "/s", "279,000/s"),
        (1_266, "/s", "1,270/s"),
        (123.4, "µs", "123 µs"),
        (12.34, "ms", "12.3 ms"),
        (0.0123, "%", "0.0123 %"),
        (3, "", "3"),
        (0, "/s", "0/s"),
        (float("inf"), "/s", "none/s"),
    ],
)
def test_amounts_have_three_digits_that_count(value: float, unit: str, text: str) -> None:
    assert harness.amount(value, unit) == text


def test_an_aim_looks_at_the_ratio_or_at_the_figure() -> None:
    assert Aim("ratio", "least", 0.5).met(1.0, 0.6)
    assert not Aim("ratio", "least", 0.5).met(1.0, 0.4)
    assert not Aim("ratio", "least", 0.5).met(1.0, None)
    assert Aim("figure", "most", 30).met(29.9, None)
    assert not Aim("figure", "most", 30).met(30.1, 0.1)


def test_a_row_says_whether_the_aim_is_met() -> None:
    figure = Figure("memory", "MB", [41, 40, 42], "bare agent", [20, 20, 21], Aim("figure", "most", 30), "50 alone")
    cells = [cell.strip() for cell in figure.row().strip("|").split("|")]
    assert cells == [
        "memory",
        "**41.0 MB**",
        "40.0 MB to 42.0 MB",
        "bare agent: 20.0 MB",
        "2.00",
        "≤ 30.0 MB: **missed**; 50 alone",
    ]


def test_writing_one_benchmark_keeps_the_others_tables() -> None:
    def text(name: str, value: float) -> str:
        return harness.table([Result(name, [Figure(f"figure of {name}", "", [value])], (0.1, 0.2), 5)])

    document = f"# Speed\n\n{harness.TABLE_BEGINS}\n{harness.TABLE_ENDS}\n\nAfter.\n"
    document = harness.replace_table(document, text("one", 1), only=["one"])
    document = harness.replace_table(document, text("two", 2), only=["two"])
    document = harness.replace_table(document, text("one", 3), only=["one"])
    assert document.startswith("# Speed\n")
    assert document.endswith("\n\nAfter.\n")
    assert document.count("Machine:") == 1
    assert "| figure of one | **3** |" in document
    assert "| figure of two | **2** |" in document
    assert "| figure of one | **1** |" not in document


def test_writing_all_benchmarks_leaves_no_old_table() -> None:
    document = f"{harness.TABLE_BEGINS}\nold\n### gone\n{harness.TABLE_ENDS}"
    assert "gone" not in harness.replace_table(document, harness.table([]))


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="document"):
        harness.replace_table("# Speed\n", "")


def test_a_tree_is_the_process_and_all_below_it(proc: Path) -> None:
    assert processes.tree(10, proc=proc) == [10, 11, 12, 13]
    assert processes.tree(14, proc=proc) == [14]


def test_memory_alone_counts_a_shared_files_pages_once(proc: Path) -> None:
    memory = processes.measure_memory([10, 11], proc=proc)
    assert memory.pss == 2 * 76 * 1024
    assert memory.rss == 2 * 120 * 1024
    # Each process's own 68 kB, and the 8 + 4 kB of the file once.
    assert memory.alone == (2 * 68 + 12) * 1024


def test_mappings_without_a_file_are_no_file_mappings() -> None:
    assert processes.parse_file_mappings(SMAPS) == [
        processes.Mapping("fe:00 26386", "00000000", 8 * 1024),
        processes.Mapping("fe:00 26386", "00002000", 4 * 1024),
    ]


def test_this_process_takes_some_memory_and_has_run() -> None:
    memory = processes.measure_memory([os.getpid()])
    assert 0 < memory.pss <= memory.rss
    assert memory.alone <= memory.rss
    assert processes.measure_activity([os.getpid()]).cpu_seconds > 0


def test_activity_adds_threads_up_and_is_a_difference(proc: Path) -> None:
    once = processes.measure_activity([10], proc=proc)
    assert once == processes.Activity(1.5, 20, 25)
    twice = processes.measure_activity([10, 11], proc=proc)
    assert twice - once == once


def test_a_process_that_has_ended_counts_nothing(proc: Path) -> None:
    assert processes.measure_memory([99], proc=proc) == processes.Memory(0, 0, 0)
    assert processes.measure_activity([99], proc=proc) == processes.Activity(0.0, 0, 0)
    assert processes.name(99, proc=proc) == ""


def test_an_unknown_benchmark_is_refused_with_the_names() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "bench", "nothing"], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 2
    assert "services, submit, memory, idle, start" in finished.stderr
