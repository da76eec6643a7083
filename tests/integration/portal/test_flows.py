from __future__ import annotations

from typing import Any

import pytest

from portal.flows.views import MASK
from portal.testing import PortalClient, RunningPortal

DEFINITIONS = {
    "static": [
        {"id": "pin", "label": "Pin", "type": "number", "default": 17},
        {"id": "invert", "type": "boolean"},
        {"id": "edge", "type": "select", "options": ["rising", "falling"]},
        {"id": "name"},
    ],
    "security": [{"id": "token"}, {"id": "other"}],
}


@pytest.fixture
async def service(owner: PortalClient) -> str:
    await owner.done("POST", "/api/services", {"file": "Reader.py"})
    await owner.done("PATCH", "/api/services/reader_py", {"properties": DEFINITIONS})
    return "reader_py"


def flow(**activity: Any) -> dict[str, Any]:
    return {"name": "Pumps", "activities": [{"service_id": "reader_py", "host": "#ALL", **activity}]}


@pytest.mark.usefixtures("service")
async def test_values_are_stored_as_their_type(owner: PortalClient) -> None:
    large = await owner.done("POST", "/api/flows", {**flow(static={"pin": 10**20}), "name": "Large"})
    assert large["activities"][0]["static"] == {"pin": 1e20}
    static = {"pin": "4", "invert": "true", "edge": "rising", "name": 7}
    made = await owner.done("POST", "/api/flows", flow(static=static))
    assert made["activities"][0]["static"] == {"pin": 4, "invert": True, "edge": "rising", "name": "7"}
    assert made["activities"][0]["resolved_version"] == "0.1"


@pytest.mark.usefixtures("service")
async def test_security_values_are_written_but_never_read(running: RunningPortal, owner: PortalClient) -> None:
    made = await owner.call("POST", "/api/flows", flow(security={"token": "t0p-secret"}))
    path = f"/api/flows/{made.body['id']}"
    read = await owner.call("GET", path)
    async with running.portal.database.engine.connect() as connection:
        raw = (await connection.exec_driver_sql("SELECT security FROM flow_activities")).scalar_one()
    assert made.body["activities"][0]["security"] == {"token": MASK}
    assert "t0p-secret" not in made.text + read.text
    assert b"t0p-secret" not in raw


@pytest.mark.usefixtures("service")
async def test_masked_value_sent_back_keeps_what_is_stored(running: RunningPortal, owner: PortalClient) -> None:
    made = await owner.done("POST", "/api/flows", flow(security={"token": "t0p-secret", "other": "x"}))
    [activity] = made["activities"]
    form = flow(id=activity["id"], security={"token": MASK, "other": "new"})
    await owner.done("PUT", f"/api/flows/{made['id']}", form)
    async with running.enrolled(owner) as node:
        config = node.manifest().services[0].config.security_config
    assert {item.id: item.value for item in config} == {"token": "t0p-secret", "other": "new"}


@pytest.mark.usefixtures("service")
async def test_mask_without_a_stored_value_sets_nothing(running: RunningPortal, owner: PortalClient) -> None:
    made = await owner.done("POST", "/api/flows", flow(security={"token": MASK}))
    assert made["activities"][0]["security"] == {}


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize(
    ("activity", "code", "field"),
    [
        ({"service_id": "none_py"}, "service_not_found", "activities.0.service_id"),
        ({"version": "9.9"}, "version_not_found", "activities.0.version"),
        ({"version": "0.01"}, "version_not_found", "activities.0.version"),
        ({"static": {"pins": 4}}, "property_unknown", "activities.0.static.pins"),
        ({"security": {"pin": 4}}, "property_unknown", "activities.0.security.pin"),
        ({"static": {"pin": "four"}}, "property_invalid", "activities.0.static.pin"),
        ({"static": {"pin": True}}, "property_invalid", "activities.0.static.pin"),
        ({"static": {"invert": "perhaps"}}, "property_invalid", "activities.0.static.invert"),
        ({"static": {"edge": "both"}}, "property_invalid", "activities.0.static.edge"),
        ({"static": {"name": ["a"]}}, "property_invalid", "activities.0.static.name"),
        ({"id": "of another flow"}, "activity_not_found", "activities.0.id"),
        ({"host": "two words"}, "request_invalid", "activities.0.host"),
        ({"version": "newest"}, "request_invalid", "activities.0.version"),
        ({"hosts": "x"}, "request_invalid", "activities.0.hosts"),
    ],
)
async def test_wrong_flow_is_refused_naming_the_field(
    owner: PortalClient, activity: dict[str, Any], code: str, field: str
) -> None:
    answer = await owner.call("POST", "/api/flows", flow(**activity))
    assert (answer.status, answer.code, answer.body["field"]) == (422, code, field)
    assert (await owner.done("GET", "/api/flows"))["items"] == []


async def test_required_property_must_have_a_value(owner: PortalClient) -> None:
    await owner.done("POST", "/api/services", {"file": "Reader.py"})
    definitions = {"static": [{"id": "pin", "required": True}]}
    await owner.done("PATCH", "/api/services/reader_py", {"properties": definitions})
    answer = await owner.call("POST", "/api/flows", flow())
    assert (answer.status, answer.code) == (422, "property_missing")
    await owner.done("POST", "/api/flows", flow(static={"pin": "4"}))


@pytest.mark.usefixtures("service")
async def test_name_is_taken_once(owner: PortalClient) -> None:
    made = await owner.done("POST", "/api/flows", flow())
    again = await owner.call("POST", "/api/flows", flow() | {"name": "PUMPS"})
    await owner.done("PUT", f"/api/flows/{made['id']}", flow() | {"name": "PUMPS"})
    assert (again.status, again.code) == (409, "flow_name_taken")


@pytest.mark.usefixtures("service")
async def test_refused_change_leaves_the_flow_as_it_was(owner: PortalClient) -> None:
    made = await owner.done("POST", "/api/flows", flow(static={"pin": 4}))
    answer = await owner.call("PUT", f"/api/flows/{made['id']}", flow(static={"pin": "x"}) | {"name": "Other"})
    assert answer.status == 422
    assert await owner.done("GET", f"/api/flows/{made['id']}") == made


@pytest.mark.usefixtures("service")
async def test_activities_are_replaced_kept_and_ordered(owner: PortalClient) -> None:
    made = await owner.done("POST", "/api/flows", flow(host="a"))
    [first] = made["activities"]
    form = flow(host="b")
    form["activities"].append({"id": first["id"], "service_id": "reader_py", "host": "c"})
    changed = await owner.done("PUT", f"/api/flows/{made['id']}", form)
    assert [activity["host"] for activity in changed["activities"]] == ["b", "c"]
    assert changed["activities"][1]["id"] == first["id"]
    emptied = await owner.done("PUT", f"/api/flows/{made['id']}", {"name": "Pumps", "activities": []})
    assert emptied["activities"] == []


@pytest.mark.usefixtures("service")
async def test_impact_names_the_nodes_that_saving_would_change_and_saves_nothing(
    running: RunningPortal, owner: PortalClient
) -> None:
    made = await owner.done("POST", "/api/flows", flow(host="one"))
    async with running.enrolled(owner, "one"), running.enrolled(owner, "two"):
        same = await owner.done("POST", f"/api/flows/impact?flow={made['id']}", flow(host="one"))
        moved = await owner.done("POST", f"/api/flows/impact?flow={made['id']}", flow(host="two"))
        tuned = await owner.done("POST", f"/api/flows/impact?flow={made['id']}", flow(host="one", static={"pin": 5}))
        another = await owner.done("POST", "/api/flows/impact", flow(host="#ALL") | {"name": "All"})
    assert same == []
    assert [(item["node"], item["starts"], item["stops"], item["changes"]) for item in moved] == [
        ("one", [], ["reader_py"], []),
        ("two", ["reader_py"], [], []),
    ]
    assert [(item["node"], item["changes"]) for item in tuned] == [("one", ["reader_py"])]
    assert [(item["node"], item["starts"]) for item in another] == [("two", ["reader_py"])]
    assert [item["name"] for item in (await owner.done("GET", "/api/flows"))["items"]] == ["Pumps"]
    assert await owner.done("GET", f"/api/flows/{made['id']}") | {"activities": []} == made | {"activities": []}


@pytest.mark.usefixtures("service")
async def test_flow_counts_the_nodes_that_it_runs_on(running: RunningPortal, owner: PortalClient) -> None:
    made = await owner.done("POST", "/api/flows", flow())
    async with running.enrolled(owner, "one"), running.enrolled(owner, "two"):
        shown = await owner.done("GET", f"/api/flows/{made['id']}")
    assert shown["activities"][0]["nodes"] == 2


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("pin", ["nan", "inf", "1e999", "9" * 400, True, [1]])
async def test_number_that_is_none_or_has_no_end_is_refused(owner: PortalClient, pin: Any) -> None:
    answer = await owner.call("POST", "/api/flows", flow(static={"pin": pin}))
    assert (answer.status, answer.code) == (422, "property_invalid")


@pytest.mark.usefixtures("service")
async def test_values_that_would_not_fit_into_a_record_of_the_hub_are_refused(
    running: RunningPortal, owner: PortalClient
) -> None:
    large = {"name": "x" * 300_000}
    answer = await owner.call("POST", "/api/flows", flow(static=large))
    assert (answer.status, answer.code, answer.body["field"]) == (422, "values_too_large", "activities.0")
    async with running.enrolled(owner) as node:
        connection = f"HostName=h;DeviceId=d;SharedAccessKey={'x' * 5000}"
        hub = await owner.call("PUT", f"/api/nodes/{node.id}/iot-hub", {"connection_string": connection})
    assert hub.status == 422
    assert "xxxx" not in hub.text
