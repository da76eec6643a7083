"""What can be done with the console."""

from __future__ import annotations

from portal.console.views import ConsoleLine
from portal.work import Work


class ConsoleService:
    """Console lines of the caller's organisation. New lines come over the bus: `console_topic(organization_id)`."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def recent(self, *, node: str = "", limit: int = 500, after: int = 0) -> list[ConsoleLine]:
        """The last lines, oldest first; `node` is an id or a name, `after` a line's id."""
        raise NotImplementedError

    async def switch(self, node_id: str, *, on: bool) -> None:
        """Switch a node's console on for 30 minutes, or off."""
        raise NotImplementedError
