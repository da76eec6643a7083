"""What can be done with connected nodes."""

from __future__ import annotations

from portal.hub.views import CommandName, CommandResult
from portal.work import Caller


class HubService:
    """Commands to connected nodes; not part of a transaction, because a node may take its time."""

    async def command(self, caller: Caller, node_id: str, command: CommandName) -> CommandResult:
        """Send a command and wait for the answer, 10 seconds at most.

        Raises NotFoundError, ConflictError (`node_offline`), NodeSilentError.
        """
        raise NotImplementedError
