"""What nodes say, as typed records; everything from outside is clipped and checked here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

import msgspec

FAULTS_AT_ONCE = 500
SERVICES_AT_ONCE = 500
FACTS_LIMIT_BYTES = 64 * 1024
TEXT_LIMIT = 16 * 1024
TRACKING_LIMIT_BYTES = 256 * 1024
"""As much as a node's outbox takes."""

Record = TypeVar("Record")
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What a database can store."""


class MalformedArgumentsError(ValueError):
    """A call's arguments are not what its target takes."""


class SignInRequest(msgspec.Struct):
    """The argument of `signInAsync`: the original's host data, ours with `signature`."""

    name: str = msgspec.field(name="Name", default="")
    id: str = ""
    organization_id: str = msgspec.field(name="OrganizationID", default="")
    agent: str = ""
    sas: str | None = ""
    signature: str = ""
    machine_name: str | None = msgspec.field(name="machineName", default="")
    agent_version: str | None = msgspec.field(name="npmVersion", default="")
    platform: str | None = msgspec.field(name="Platform", default="")
    ip_addresses: list[str] = msgspec.field(name="ipAddresses", default_factory=list)
    mac_addresses: list[str] = msgspec.field(name="macAddresses", default_factory=list)

    @property
    def ours(self) -> bool:
        """Whether it is an agent of ours."""
        return self.agent == "outstation" or bool(self.signature)


class CreateNodeFacts(msgspec.Struct):
    """The fourth argument of `createNode`, which only ours sends."""

    public_key: str = msgspec.field(name="publicKey")
    machine_name: str = msgspec.field(name="machineName", default="")
    agent_version: str = msgspec.field(name="agentVersion", default="")
    platform: str = ""


class AnnounceRequest(msgspec.Struct):
    """The argument of `assertNode`."""

    host_name: str | None = msgspec.field(name="hostName", default="")
    imei: str | None = None
    ip_address: str | None = msgspec.field(name="ipAddress", default="")
    mac_addresses: str | list[str] | None = msgspec.field(name="macAddresses", default="")
    public_key: str | None = msgspec.field(name="publicKey", default=None)


class FaultReport(msgspec.Struct):
    """One of the records of `faults`: a fault, or what a service told with Track."""

    stream: str
    service: str
    sequence: Number
    boot: str = ""
    time: float | None = None
    kind: Literal["fault", "tracking"] = "fault"
    code: str | int | None = ""
    text: Any = ""
    description: Any = ""
    record: Any = None
    """Of a tracking record: all of it."""


class ServiceReport(msgspec.Struct):
    """One of the records of `serviceStates`."""

    id: str
    version: str = ""
    state: str = ""
    pid: Number | None = None
    fault: str | None = ""
    since: float | None = None


class DeploymentReport(msgspec.Struct):
    """The argument of `deploymentState`."""

    deployment: str = ""
    state: str = ""
    error: str = ""


class ConsoleDetails(msgspec.Struct):
    """The fourth argument of `logMessage`, which only ours sends."""

    service: str = ""
    level: str = "info"
    time: float | None = None


def read(value: Any, kind: type[Record], what: str) -> Record:
    """Convert an argument. Raises MalformedArgumentsError naming `what`."""
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise MalformedArgumentsError(f"{what}: {error}") from error


def argument(arguments: Sequence[Any], index: int, default: Any = None) -> Any:
    """An argument that may be missing."""
    return arguments[index] if len(arguments) > index else default


def clip(text: Any, limit: int = TEXT_LIMIT) -> str:
    """Outside text, bounded and without NUL, which PostgreSQL cannot store."""
    return "" if text is None else str(text)[:limit].replace("\x00", "")


def tracking_record(report: FaultReport) -> dict[str, Any]:
    """What a service told with Track, bounded: of what is too large to keep, the beginning of its text."""
    record = report.record
    if record is None:
        # Not from our agent: its texts are all there is.
        texts = {"code": report.code, "text": report.text, "description": report.description}
        record = {key: value for key, value in texts.items() if value}
    if not isinstance(record, dict):
        record = {"message": record}
    try:
        encoded = msgspec.json.encode(record)
    except RecursionError as error:
        raise MalformedArgumentsError("faults: a tracking record is nested too deeply") from error
    if len(encoded) > TRACKING_LIMIT_BYTES:
        return {"clipped": clip(encoded.decode())}
    return record


BEFORE_ANY_NODE = datetime(2020, 1, 1, tzinfo=UTC).timestamp()


def moment(seconds: float | None, default: datetime) -> datetime:
    """A node's wall time; `default` for what cannot be one: a board without a real-time clock boots in 1970."""
    if seconds is None or not math.isfinite(seconds) or seconds < BEFORE_ANY_NODE:
        return default
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except OverflowError:
        return default
