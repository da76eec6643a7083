"""What pages and API see of the console."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from portal.views import Form, View

Level = Literal["debug", "info", "warning", "error", "status"]


class ConsoleLine(View):
    """One line. Pages show warnings yellow and errors red."""

    id: int
    """Rises with each line of this portal process."""
    node_id: str
    node: str
    service: str
    level: Level
    text: str
    time: datetime
    """When the node wrote it, as the node believes."""


class ConsoleSwitch(Form):
    """The console of one node, on for 30 minutes or off."""

    on: bool
