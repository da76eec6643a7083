"""Commands to connected nodes, and what came of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any

from portal.errors import ConflictError, NodeSilentError, NotFoundError
from portal.hub.connection import NodeConnection, PendingCommand
from portal.hub.registry import Registry
from portal.hub.views import CommandName, CommandResult
from portal.nodes.repository import NodeRepository
from portal.work import Caller

if TYPE_CHECKING:
    from portal.portal import Portal


class Commands:
    """Sends commands."""

    def __init__(self, portal: Portal, registry: Registry) -> None:
        self._portal = portal
        self._registry = registry

    async def command(self, caller: Caller, node_id: str, command: CommandName) -> CommandResult:
        """Send a command and wait for the answer, 10 seconds at most.

        Raises NotFoundError, ConflictError (`node_offline`), NodeSilentError.
        """
        caller.require("operator")
        async with self._portal.database.reading() as session:
            node = await NodeRepository(session).get(caller.organization_id, node_id)
        if node is None:
            raise NotFoundError(f"There is no node {node_id}; it may have been deleted.", code="node_not_found")
        connection = self._registry.connection_of(node_id)
        if connection is None:
            raise ConflictError(
                f"{node.name} is offline; the command was not sent. Try again when it is back.", code="node_offline"
            )
        started = time.monotonic()
        outcome = await self._carry_out(connection, node.name, command)
        milliseconds = round((time.monotonic() - started) * 1000)
        result = CommandResult(
            command=command,
            outcome=outcome["outcome"],
            text=outcome["text"],
            result=outcome.get("result"),
            milliseconds=milliseconds,
        )
        async with self._portal.database.writing() as session:
            nodes = NodeRepository(session)
            stored = await nodes.get(caller.organization_id, node_id)
            if stored is not None:
                text = f"{caller.name} sent {command}: {result.outcome}."
                nodes.record(stored, self._portal.now(), "command", text, command=command, outcome=result.outcome)
        return result

    async def _carry_out(self, connection: NodeConnection, name: str, command: CommandName) -> dict[str, Any]:
        who = secrets.token_hex(8)
        pending = PendingCommand(command, asyncio.get_running_loop().create_future())
        connection.commands[who] = pending
        answered = command in ("ping", "report_state")
        try:
            match command:
                case "ping":
                    connection.send("ping", who)
                case "report_state":
                    connection.send("reportState", who)
                case "restart":
                    connection.send("restart")
                case "restart_com":
                    connection.send("restartCom")
            # A command without an answer may still be refused, and a restart shows in the end of the connection.
            patience = (
                self._registry.limits.command_seconds
                if command != "restart_com"
                else self._registry.limits.command_seconds / 10
            )
            async with asyncio.timeout(patience):
                answer = await pending.answer
        except TimeoutError:
            if answered:
                raise NodeSilentError(
                    f"{name} did not answer {command} in {self._registry.limits.command_seconds:.0f} s; it may be busy."
                ) from None
            return {"outcome": "sent", "text": f"{command} was sent to {name}."}
        finally:
            del connection.commands[who]
        if answer is None:
            if answered:
                raise ConflictError(f"{name} went offline before it answered {command}.", code="node_offline")
            return {"outcome": "done", "text": f"{name} ended its connection to carry out {command}."}
        if "refused" in answer:
            return {"outcome": "refused", "text": answer["refused"]}
        return {"outcome": "done", "text": f"{name} answered.", "result": answer["result"]}
