"""IoT Hub's MQTT topics: what a device publishes and subscribes to, and how properties travel in them.

Facts: Microsoft, "Communicate with an IoT hub using the MQTT protocol".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

C2D_FILTER = "devices/{device}/messages/devicebound/#"
METHODS_FILTER = "$iothub/methods/POST/#"
TWIN_ANSWERS_FILTER = "$iothub/twin/res/#"
TWIN_DESIRED_FILTER = "$iothub/twin/PATCH/properties/desired/#"

_SYSTEM_NAMES = {
    "$.mid": "message_id",
    "$.cid": "correlation_id",
    "$.uid": "user_id",
    "$.ct": "content_type",
    "$.ce": "content_encoding",
    "$.exp": "expiry_time",
    "$.ctime": "creation_time",
    "$.to": "to",
    "$.on": "output_name",
    "$.ifid": "interface_id",
    "$.sub": "component",
}
_WIRE_NAMES = {name: wire for wire, name in _SYSTEM_NAMES.items()}


@dataclass(frozen=True, slots=True)
class TelemetryTopic:
    """`devices/{id}/messages/events/{properties}`."""

    system: dict[str, str]
    properties: dict[str, str]


@dataclass(frozen=True, slots=True)
class TwinGet:
    """`$iothub/twin/GET/?$rid=`."""

    request_id: str


@dataclass(frozen=True, slots=True)
class TwinReport:
    """`$iothub/twin/PATCH/properties/reported/?$rid=`."""

    request_id: str


@dataclass(frozen=True, slots=True)
class MethodAnswer:
    """`$iothub/methods/res/{status}/?$rid=`."""

    request_id: str
    status: int


Topic = TelemetryTopic | TwinGet | TwinReport | MethodAnswer


def parse_topic(topic: str, device: str) -> Topic | None:
    """What `device` means by publishing to `topic`; None when IoT Hub knows no such topic."""
    events = f"devices/{device}/messages/events"
    if topic == events or topic.startswith(events + "/"):
        return TelemetryTopic(*decode_properties(topic[len(events) + 1 :]))
    head, _, query = topic.partition("?")
    if head == "$iothub/twin/GET/":
        return _with_request_id(query, TwinGet)
    if head == "$iothub/twin/PATCH/properties/reported/":
        return _with_request_id(query, TwinReport)
    parts = head.split("/")
    if parts[:3] == ["$iothub", "methods", "res"] and len(parts) == 5 and parts[3].lstrip("-").isdecimal():
        request_id = _query(query).get("$rid")
        return MethodAnswer(request_id, int(parts[3])) if request_id else None
    return None


def decode_properties(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Split a topic's last part into system and application properties.

    Pairs are URL-encoded, `+` means itself, and a name without a value has an empty one.
    """
    system: dict[str, str] = {}
    properties: dict[str, str] = {}
    for name, value in _query(text).items():
        if name.startswith("$."):
            system[_SYSTEM_NAMES.get(name, name)] = value
        elif name:
            properties[name] = value
    return system, properties


def c2d_topic(device: str, system: Mapping[str, str], properties: Mapping[str, str]) -> str:
    """Where a cloud-to-device message arrives, its properties included."""
    pairs = [(_WIRE_NAMES[name], value) for name, value in system.items()]
    pairs += sorted(properties.items())
    encoded = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
    return f"devices/{device}/messages/devicebound/{encoded}"


def twin_answer_topic(status: int, request_id: str, version: int | None = None) -> str:
    """Where the answer to a twin request arrives."""
    suffix = "" if version is None else f"&$version={version}"
    return f"$iothub/twin/res/{status}/?$rid={quote(request_id, safe='')}{suffix}"


def desired_topic(version: int) -> str:
    """Where a change of the desired properties arrives."""
    return f"$iothub/twin/PATCH/properties/desired/?$version={version}"


def method_topic(name: str, request_id: str) -> str:
    """Where a direct method's call arrives."""
    return f"$iothub/methods/POST/{quote(name, safe='')}/?$rid={request_id}"


def allowed_filters(device: str) -> frozenset[str]:
    """What `device` may subscribe to."""
    return frozenset({C2D_FILTER.format(device=device), METHODS_FILTER, TWIN_ANSWERS_FILTER, TWIN_DESIRED_FILTER})


def _with_request_id(query: str, kind: type[TwinGet] | type[TwinReport]) -> TwinGet | TwinReport | None:
    request_id = _query(query).get("$rid")
    return kind(request_id) if request_id else None


def _query(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in text.split("&") if text else ():
        name, _, value = part.partition("=")
        pairs[unquote(name)] = unquote(value)
    return pairs
