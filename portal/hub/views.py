"""What pages and API see of the node hub."""

from __future__ import annotations

from typing import Any, Literal

from portal.views import Form, View

CommandName = Literal["restart", "ping", "report_state", "restart_com"]
Outcome = Literal["done", "sent", "refused"]


class CommandForm(Form):
    """A command to a node."""

    command: CommandName


class CommandResult(View):
    """What a node said to a command.

    `done`: it answered, `result` is its answer. `sent`: this command has no answer; it was handed to the connection.
    `refused`: the node said no, `text` says why.
    """

    command: CommandName
    outcome: Outcome
    text: str
    result: dict[str, Any] | None = None
    milliseconds: int
