"""What a service prints."""

from __future__ import annotations

import os
import signal

import pytest

from agent.runtime.host import describe_status
from agent.runtime.output import LINE_LIMIT, TAIL_LINES, OutputLines, RateLimit


async def test_output_is_cut_into_lines_wherever_the_pieces_end():
    lines: list[str] = []
    output = OutputLines(lines.append)
    for piece in (b"one\ntw", b"o\r\n", b"\n", b"thr\xc3", b"\xa9e\n\xff\nrest"):
        output.data_received(piece)
    assert lines == ["one", "two", "", "thrée", "\ufffd"]
    output.connection_lost(None)
    assert lines[-1] == "rest"
    assert output.ended.is_set()


async def test_endless_line_comes_in_parts():
    lines: list[str] = []
    output = OutputLines(lines.append)
    for _ in range(10):
        output.data_received(b"x" * 10_000)
    output.connection_lost(None)
    assert {len(line) for line in lines[:-1]} == {LINE_LIMIT}
    assert sum(map(len, lines)) == 100_000


async def test_only_the_last_lines_are_kept_to_explain_a_crash():
    output = OutputLines(lambda _: None)
    output.data_received(b"".join(b"%d\n" % number for number in range(1000)))
    assert len(output.tail) == TAIL_LINES
    assert output.tail[-1] == "999"


def test_burst_passes_then_so_many_a_second():
    now = 0.0
    limit = RateLimit(per_second=10, burst=100, monotonic=lambda: now)
    assert sum(limit.allow() for _ in range(500)) == 100
    assert limit.held_back() == 400
    assert limit.held_back() == 0
    now = 1.0
    assert sum(limit.allow() for _ in range(500)) == 10


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "ended by itself with status 0"),
        (3 << 8, "ended by itself with status 3"),
        (int(signal.SIGSEGV), "died of SIGSEGV (signal 11)"),
        (int(signal.SIGKILL), "died of SIGKILL (signal 9) (out of memory, or killed by hand)"),
        (int(signal.SIGRTMIN) + 1, "died of signal 35"),
        (None, "ended; how is not known, because the template process had ended before it"),
    ],
)
def test_wait_status_is_explained(status, text):
    assert describe_status(status) == text
    if status is not None:
        assert os.WIFEXITED(status) or os.WIFSIGNALED(status)
