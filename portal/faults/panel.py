"""The list of faults that several pages show."""

from __future__ import annotations

from collections.abc import Sequence

from portal.faults.views import FaultView
from portal.web.components import Moment, Tag, empty, mark_only


class FaultList:
    """Faults, newest first, each with its description or traceback to unfold."""

    def __init__(self, *, node_names: bool) -> None:
        self._node_names = node_names
        self._shown: list[FaultView] | None = None
        self._list = Tag("div", "", "list rows-faults")

    def show(self, faults: Sequence[FaultView]) -> None:
        """Draw `faults`, unless they are what is shown."""
        if self._shown == list(faults):
            return
        self._shown = list(faults)
        self._list.clear()
        with self._list:
            if not faults:
                empty("No fault.", "What services report with ThrowError, and what ends them, comes here by itself.")
            for fault in faults:
                self._fault(fault)

    def _fault(self, fault: FaultView) -> None:
        with Tag("div", "", "row"):
            mark_only("fault", "fault")
            with Tag("div", "").style("min-width: 0"):
                Tag("div", fault.text.strip().splitlines()[0] if fault.text.strip() else "No text", "row-title")
                with Tag("div", "", "muted small line").style("gap: 0 8px"):
                    if self._node_names:
                        Tag("a", fault.node, "link", href=f"/nodes/{fault.node_id}")
                    Tag("span", fault.service or "agent")
                    if fault.code:
                        Tag("span", f"code {fault.code}", "data")
                more = "\n".join(part for part in (*fault.text.strip().splitlines()[1:], fault.description) if part)
                if more:
                    with Tag("details", "", "fold small"):
                        Tag("summary", "Details")
                        Tag("pre", more, "trace", tabindex="0")
            with Tag("span", "", "muted small"):
                Moment(fault.at)
