"""What `outstation status` shows: asked of the running agent, or read from the disk."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agent import __version__
from agent.control import NotRunningError, ask
from agent.errors import NotEnrolledError
from agent.exitcodes import ExitCode
from agent.identity import load_identity
from agent.paths import Paths

_GREEN, _YELLOW, _RED, _DIM, _RESET = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[2m", "\x1b[0m"
# The shape says it as well as the colour.
_MARKS = {
    "running": ("●", _GREEN),
    "starting": ("◐", _YELLOW),
    "installing": ("◐", _YELLOW),
    "stopping": ("◐", _YELLOW),
    "backing_off": ("▲", _YELLOW),
    "stopped": ("○", _DIM),
    "failed": ("✖", _RED),
}


def read_status(paths: Paths) -> tuple[dict[str, Any], ExitCode]:
    """The status as a document, and the exit status that goes with it (1: not running, 26: not enrolled)."""
    base: dict[str, Any] = {"version": __version__, "state_dir": str(paths.state), "running": False}
    try:
        return {**base, **ask(paths.control_socket, "status"), "running": True}, ExitCode.OK
    except NotRunningError as error:
        base["reason"] = str(error)
    try:
        identity = load_identity(paths)
    except NotEnrolledError as error:
        return {**base, "node": None, "reason": str(error)}, ExitCode.NOT_ENROLLED
    base["node"] = {"name": identity.node_name, "portal": identity.portal_url}
    return base, ExitCode.FAILURE


def render_status(status: dict[str, Any], *, colour: bool) -> str:
    """The status for people."""

    def paint(text: str, code: str) -> str:
        return f"{code}{text}{_RESET}" if colour else text

    node = status.get("node")
    if node is None:
        return f"{paint('○', _DIM)} not enrolled\n  {status['reason']}"
    if not status["running"]:
        return f"{paint('○', _DIM)} {node['name']} is not running\n  {status['reason']}"
    portal = status["portal"]
    lines = [f"{paint('●', _GREEN)} {node['name']} runs (agent {status['version']}, pid {status['pid']})"]
    if portal["connected"]:
        lines.append(f"  portal    {paint('●', _GREEN)} {portal['url']}, signed in since {_moment(portal['since'])}")
    else:
        # The error's own sentence names the portal.
        lines.append(
            f"  portal    {paint('▲', _YELLOW)} {portal['last_error'] or portal['url'] + ': not signed in yet'}"
        )
    for sink in status["sinks"]:
        mark = paint("●", _GREEN) if sink["connected"] else paint("▲", _YELLOW)
        text = f"{sink['acknowledged']} acknowledged"
        if sink["parked"]:
            text += f", {sink['parked']} refused for ever and parked"
        if sink["last_error"] and not sink["connected"]:
            text += f"; {sink['last_error']}"
        lines.append(f"  sink      {mark} {sink['name']}: {text}")
    outbox = status["outbox"]
    lines.append(f"  outbox    {outbox['depth']} waiting, {_size(outbox['bytes'])} on disk")
    if outbox["recovered_from"]:
        lines.append(f"            {paint('▲', _YELLOW)} a damaged file was set aside as {outbox['recovered_from']}")
    services = status["services"]
    if not services:
        lines.append("  services  none: assign one to this node in the portal under Flows")
    for service in services:
        mark, code = _MARKS.get(service["state"], ("?", _DIM))
        lines.append(
            f"  service   {paint(mark, code)} {service['id']} {service['version']}: {service['state']}"
            + (f", {service['fault'].splitlines()[-1]}" if service.get("fault") else "")
        )
    return "\n".join(lines)


def _moment(wall: float) -> str:
    return datetime.fromtimestamp(wall, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"
