import io

import pytest

from agent.logs import TEXT_LIMIT, LineWriter, clip


def test_control_characters_of_outside_text_cannot_drive_a_terminal() -> None:
    assert clip("a\x1b[31mb\x07") == "a\\x1b[31mb\\x07"


def test_long_text_is_cut_and_says_so() -> None:
    assert clip("x" * 9999) == "x" * TEXT_LIMIT + " … (cut)"


def test_plain_text_marks_levels_with_words() -> None:
    stream = io.StringIO()
    LineWriter(stream).write("warning", "readgpio_py", "two\nlines", 0.0)
    assert stream.getvalue().endswith(" WARNING readgpio_py: two\n    lines\n")


def test_journal_lines_carry_their_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    stream = io.StringIO()
    LineWriter(stream).write("error", "com", "broken", 0.0)
    assert stream.getvalue() == "<3>com: broken\n"
