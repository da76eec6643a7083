"""Command-line flags, each with an environment twin that `--help` shows."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from agent.errors import ConfigError

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})


def add_flag(
    parser: argparse._ActionsContainer,
    *names: str,
    env: str,
    help: str,
    default: Any = None,
    type: Callable[[str], Any] = str,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    switch: bool = False,
    secret: bool = False,
) -> None:
    """Add a flag whose default is the environment variable `env`, else `default`.

    A command line beats the environment. `switch` makes it a flag without a value. `secret` keeps the default out of
    the help text. Raises ConfigError at once when the variable holds a value that the flag would refuse.
    """
    raw = os.environ.get(env)
    value = default
    if raw is not None:
        value = _boolean(env, raw) if switch else _parse(env, raw, type, choices)
    text = help
    if default not in (None, False, "") and not secret:
        text += f" (default: {default})"
    text = f"{text} [env: {env}]".replace("%", "%%")
    if switch:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=value or False, help=text)
    else:
        parser.add_argument(*names, default=value, type=type, choices=choices, metavar=metavar, help=text)


def _boolean(env: str, raw: str) -> bool:
    lowered = raw.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ConfigError(f"{env} is {raw!r}; it must be 1 or 0 (true, false, yes, no, on, off).")


def _parse(env: str, raw: str, parse: Callable[[str], Any], choices: Sequence[str] | None) -> Any:
    if raw == "":
        return None
    try:
        value = parse(raw)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"{env} is {raw!r}, which is not valid: {error}.") from error
    if choices is not None and value not in choices:
        raise ConfigError(f"{env} is {raw!r}; it must be one of {', '.join(choices)}.")
    return value
