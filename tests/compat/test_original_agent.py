"""Agents of the original product, unmodified from the package index, at home in our portal."""

import socket
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


def test_announced_agent_is_claimed_and_signs_in(site: Any) -> None:
    node = site.node()
    assert (node["name"], node["kind"], node["tags"], node["online"]) == ("old-pi", "original", ["old"], True)
    assert (node["agent_version"], node["machine_name"]) == ("1.0.18", socket.gethostname())
    assert "127.0.0.1" in node["ip_addresses"]
    assert [service["file"] for service in node["assigned"]] == ["Greeter.py"]
    assert site.api("GET", "/api/announcements") == []


def test_service_runs_with_its_properties_and_shows_in_the_console(site: Any) -> None:
    line = site.wait_line("good day at your service")
    assert (line["node"], line["level"]) == ("old-pi", "info")


def test_ping_and_state_are_answered_without_the_agents_environment(site: Any) -> None:
    answer = site.api("POST", f"/api/nodes/{site.node_id}/commands", {"command": "ping"})
    assert (answer["outcome"], answer["result"]) == ("done", {"state": "Online"})
    answer = site.api("POST", f"/api/nodes/{site.node_id}/commands", {"command": "report_state"})
    assert answer["outcome"] == "done"
    assert {"networks", "memory", "storage"} <= answer["result"].keys()
    assert "env" not in answer["result"]


def test_disabled_node_stops_its_services_until_it_is_enabled(site: Any) -> None:
    site.api("PATCH", f"/api/nodes/{site.node_id}", {"enabled": False})
    asleep = site.wait_line("good night")["id"]
    assert site.agent.settings()["state"] == "InActive"
    site.api("PATCH", f"/api/nodes/{site.node_id}", {"enabled": True})
    site.wait_line("good day at your service", after=asleep)
    assert site.agent.settings()["state"] == "Active"


def test_console_is_silent_when_it_is_off(site: Any) -> None:
    site.api("PUT", f"/api/nodes/{site.node_id}/console", {"on": False})
    silent = site.last_line()
    site.api("POST", f"/api/nodes/{site.node_id}/commands", {"command": "ping"})
    assert site.last_line() == silent
    site.api("PUT", f"/api/nodes/{site.node_id}/console", {"on": True})
    site.wait_line("good day at your service", after=silent)


def test_saved_service_restarts_the_agent_from_its_stored_settings(site: Any) -> None:
    before, line, starts = site.last_event(), site.last_line(), site.agent.starts()
    source = site.api("GET", "/api/services/greeter_py/versions/0.1/source")["source"]
    source = source.replace("at your service", "from a better service")
    site.api("PUT", "/api/services/greeter_py/versions/0.1/source", {"source": source})
    site.wait_online(after=before)
    site.wait_line("good day from a better service", after=line)
    assert site.agent.starts() == starts + 1
    # This agent has no service for a cloud; its readings end here, and the guide says so.
    site.wait_line("There is no service called com", after=line)


def test_restart_command_restarts_the_agent(site: Any) -> None:
    before, starts = site.last_event(), site.agent.starts()
    answer = site.api("POST", f"/api/nodes/{site.node_id}/commands", {"command": "restart"})
    assert answer["outcome"] == "done"
    site.wait_online(after=before)
    assert site.agent.starts() == starts + 1


def test_agent_whose_connection_breaks_starts_anew_and_signs_in(site: Any) -> None:
    before, starts = site.last_event(), site.agent.starts()
    site.cable.cut()
    site.wait_online(after=before)
    # It connects again by itself, but signs in only when it starts: the portal tells it to.
    assert site.agent.starts() == starts + 1


def test_agent_comes_back_after_the_portal_was_away(site: Any) -> None:
    before = site.last_event()
    site.portal.stop()
    site.portal.start()
    site.wait_online(after=before)
    assert site.node()["online"]


def test_agent_that_is_not_allowed_any_more_keeps_its_identity_and_comes_back(site: Any) -> None:
    site.agent.kill()
    identity = site.agent.settings()["sas"]
    site.api("PATCH", "/api/organization", {"allow_original_agents": False})
    site.agent.start()
    site.wait_refused("This organisation does not take agents of the original product at the moment.")
    assert site.agent.settings()["sas"] == identity
    assert not site.node()["online"]
    site.agent.kill()
    before = site.last_event()
    site.api("PATCH", "/api/organization", {"allow_original_agents": True})
    site.agent.start()
    site.wait_online(after=before)


def test_agent_touched_nothing_outside_its_folder_and_spoke_to_nobody_else(site: Any) -> None:
    assert site.agent.refused() == ""
