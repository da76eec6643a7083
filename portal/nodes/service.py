"""What can be done with nodes."""

from __future__ import annotations

import builtins
from typing import Literal

from portal.nodes.views import (
    AnnouncementView,
    ClaimForm,
    IotHubForm,
    NodeChange,
    NodeDetail,
    NodeEventView,
    NodeView,
    TagView,
    VerificationCodeForm,
    VerificationCodeView,
)
from portal.views import Page
from portal.work import Work


class NodeService:
    """Nodes, verification codes and announcements of the caller's organisation."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def list(
        self,
        *,
        search: str = "",
        tag: str = "",
        status: Literal["", "online", "offline", "disabled"] = "",
        limit: int = 100,
        after: str | None = None,
    ) -> Page[NodeView]:
        """Nodes by name; `search` looks into name, tags and addresses."""
        raise NotImplementedError

    async def get(self, node_id: str) -> NodeDetail:
        """One node. Raises NotFoundError."""
        raise NotImplementedError

    async def create_verification_code(self, form: VerificationCodeForm) -> VerificationCodeView:
        """Make a one-time code and the command that uses it. Raises ConflictError (`node_name_taken`)."""
        raise NotImplementedError

    async def change(self, node_id: str, change: NodeChange) -> NodeDetail:
        """Change a node; it is told once the change is stored. Raises NotFoundError, ConflictError (`node_name_taken`)."""
        raise NotImplementedError

    async def delete(self, node_id: str) -> None:
        """Forget a node and end its connection; it must enrol again. Raises NotFoundError."""
        raise NotImplementedError

    async def set_iot_hub(self, node_id: str, form: IotHubForm) -> NodeDetail:
        """Store how the node reaches its IoT Hub. Raises InvalidError (`connection_string_invalid`)."""
        raise NotImplementedError

    async def clear_iot_hub(self, node_id: str) -> NodeDetail:
        """Forget how the node reaches its IoT Hub."""
        raise NotImplementedError

    async def events(self, node_id: str, *, limit: int = 100, after: str | None = None) -> Page[NodeEventView]:
        """The node's timeline, newest first."""
        raise NotImplementedError

    async def tags(self) -> builtins.list[TagView]:
        """All tags in use."""
        raise NotImplementedError

    async def announcements(self) -> builtins.list[AnnouncementView]:
        """Machines that wait to be claimed, newest first."""
        raise NotImplementedError

    async def claim(self, announcement_id: str, form: ClaimForm) -> NodeDetail:
        """Take an announced machine in. Raises ConflictError (`node_offline`, `original_agents_not_allowed`)."""
        raise NotImplementedError

    async def dismiss(self, announcement_id: str) -> None:
        """Forget an announcement."""
        raise NotImplementedError
