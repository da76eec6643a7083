"""The agent's own log: one line a record, colour on a terminal only, made for journald elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from datetime import datetime
from typing import TextIO

TEXT_LIMIT = 4_000
"""Characters of one line; the rest of it is cut and said to be."""

_COLOURS = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_RESET = "\x1b[0m"
# journald reads "<N>" at the start of a line as its priority (sd-daemon(3)).
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}


def clip(text: str) -> str:
    """Outside text on one line and of bounded length; control characters are made visible."""
    cleaned = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text[: TEXT_LIMIT + 1])
    cleaned = cleaned.rstrip("\n").replace("\n", "\n    ")
    return cleaned if len(cleaned) <= TEXT_LIMIT else cleaned[:TEXT_LIMIT] + " … (cut)"


class LineWriter:
    """Writes lines for people (a terminal) or for journald, whichever `stream` is."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._journal = "JOURNAL_STREAM" in os.environ and not self._stream.isatty()
        self._colour = self._stream.isatty() and "NO_COLOR" not in os.environ

    def write(self, level: str, source: str, text: str, wall: float) -> None:
        """One record; `level` is debug, info, warning or error."""
        line = f"{source}: {clip(text)}" if source else clip(text)
        if self._journal:
            line = f"<{_PRIORITIES.get(level, 6)}>{line}"
        else:
            moment = datetime.fromtimestamp(wall).astimezone().strftime("%H:%M:%S")
            if self._colour and (colour := _COLOURS.get(level)):
                line = f"{colour}{moment} {line}{_RESET}"
            else:
                marker = {"warning": "WARNING ", "error": "ERROR "}.get(level, "")
                line = f"{moment} {marker}{line}"
        self._stream.write(line + "\n")
        self._stream.flush()


class LineHandler(logging.Handler):
    """Python's logging through a LineWriter."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a traceback follows indented."""
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            level = record.levelname.lower()
            self._writer.write("error" if level == "critical" else level, "", text, record.created)
        except (OSError, ValueError):
            self.handleError(record)


def configure(level: str, writer: LineWriter | None = None) -> LineWriter:
    """Send the agent's log to the terminal or journal; returns the writer, which the logger service shares."""
    writer = writer or LineWriter()
    root = logging.getLogger()
    root.handlers[:] = [LineHandler(writer)]
    root.setLevel(level.upper())
    for noisy in ("aiohttp", "asyncio", "azure", "paho"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    return writer
