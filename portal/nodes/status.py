"""How a node's state is said in pages: one mark and one word, the same everywhere."""

from __future__ import annotations

from portal.nodes.views import NodeView
from portal.web.icons import MarkKind

SERVICE_MARKS: dict[str, tuple[MarkKind, str]] = {
    "running": ("good", "running"),
    "starting": ("busy", "starting"),
    "installing": ("busy", "installing packages"),
    "stopping": ("busy", "stopping"),
    "stopped": ("idle", "stopped"),
    "backing_off": ("warn", "waits to restart"),
    "failed": ("fault", "failed"),
}


def presence(node: NodeView) -> tuple[MarkKind, str]:
    """Whether a node is there: online, offline, disabled, or never seen."""
    if not node.enabled:
        return "off", "disabled"
    if node.online:
        return "good", "online"
    return ("idle", "offline") if node.last_seen_at else ("idle", "never seen")


def condition(node: NodeView) -> tuple[MarkKind, str]:
    """What a node's window in the annunciator says: the worst thing that is known of it."""
    kind, word = presence(node)
    if not node.enabled:
        return kind, word
    if node.deployment_state == "failed":
        return "fault", "deployment failed"
    if node.online and node.faults:
        return "fault", f"{node.faults} fault{'' if node.faults == 1 else 's'} today"
    if not node.online:
        return "warn", word
    return kind, word


def service_mark(state: str) -> tuple[MarkKind, str]:
    """A service's state as its node reports it."""
    return SERVICE_MARKS.get(state, ("idle", state or "unknown"))
