from __future__ import annotations

import pytest

from agent.hub.protocol import ServiceConfig
from portal.flows.plan import Assignment, Plan


def assign(host: str, *, flow: str = "f", service: str = "a_py", activity: str = "") -> Assignment:
    return Assignment(
        service_id=service,
        file="A.py",
        version="0.1",
        pinned=False,
        sha256="",
        requirements=(),
        flow_id=flow,
        flow=flow,
        activity_id=activity or f"{flow}-{host}",
        host=host,
        enabled=True,
        config=ServiceConfig(),
    )


@pytest.mark.parametrize(
    ("host", "runs"),
    [
        ("Pump-1", True),
        ("north", True),
        ("#North", True),
        ("#ALL", True),
        ("#all", True),
        ("ALL", False),
        ("#pump-1", False),
        ("pump", False),
        ("#south", False),
    ],
)
def test_host_names_a_node_a_tag_or_all(host: str, runs: bool) -> None:
    assert bool(Plan([assign(host)]).for_node("pump-1", ["NORTH"])) is runs


def test_node_whose_name_is_also_its_tag_runs_a_service_once() -> None:
    [found] = Plan([assign("north")]).for_node("north", ["north"])
    assert found.overrides == ()


def test_name_beats_tag_beats_all_and_then_the_older_flow() -> None:
    plan = Plan([assign("#ALL", flow="1"), assign("b", flow="2"), assign("#a", flow="3"), assign("node", flow="4")])
    [found] = plan.for_node("node", ["b", "a"])
    assert (found.flow, found.overrides) == ("4", ("2", "3", "1"))


def test_services_come_in_the_order_of_their_ids() -> None:
    plan = Plan([assign("#ALL", service=service) for service in ("c_py", "a_py", "b_py")])
    assert [item.service_id for item in plan.for_node("x", [])] == ["a_py", "b_py", "c_py"]
