"""Nodes in the pages: enrolment, live status, faults, tags, console."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_add_a_node_shows_the_code_and_says_so_when_the_node_has_joined(portal, pages, fake_node, tmp_path):
    page = await pages.open(portal, "/nodes")
    await page.get_by_role("button", name="Add a node").first.click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Name").fill("greenhouse")
    await dialog.get_by_label("Tags").fill("climate, #north")
    await dialog.get_by_role("button", name="Make the code").click()
    command = await dialog.get_by_label("Enrol command", exact=True).inner_text()
    code = await dialog.get_by_label("Verification code", exact=True).inner_text()
    assert portal.url in command
    assert code in command
    await expect(dialog.get_by_text(re.compile(r"^(30:00|29:\d\d)$"))).to_be_visible()

    node = await fake_node.enrol(portal, code, tmp_path)
    await expect(dialog.get_by_role("heading", name="greenhouse has joined")).to_be_visible()
    assert node.name == "greenhouse"
    await dialog.get_by_role("link", name="Open the node").click()
    await expect(page.get_by_role("heading", level=1, name="greenhouse")).to_be_visible()
    await expect(page.get_by_text("#climate")).to_be_visible()


async def test_the_list_follows_a_node_without_reloading(portal, pages, fake_node, tmp_path):
    code = await portal.api("POST", "/api/verification-codes", {"name": "gate"})
    node = await fake_node.enrol(portal, code["code"], tmp_path)
    page = await pages.open(portal, "/nodes")
    row = page.get_by_role("link", name="gate")
    await expect(row).to_contain_text("never seen")
    async with node.online():
        await expect(row).to_contain_text("online")
        await node.fault("Pin 22 cannot be read")
        await expect(row).to_contain_text("1 fault")
    await expect(row).to_contain_text("offline")


async def test_search_and_filters_narrow_the_list(portal, pages, node):
    page = await pages.open(portal, "/nodes")
    await expect(page.get_by_role("link", name="pump-house-1")).to_be_visible()
    await page.get_by_label("Search nodes").fill("no such node")
    await expect(page.get_by_text("No node matches.")).to_be_visible()
    await page.get_by_label("Search nodes").fill("pump")
    await page.get_by_label("Status").select_option("online")
    await expect(page.get_by_role("link", name="pump-house-1")).to_be_visible()
    await page.get_by_label("Status").select_option("disabled")
    await expect(page.get_by_text("No node matches.")).to_be_visible()


async def test_a_node_shows_its_services_measurements_faults_and_events_live(portal, pages, node):
    page = await pages.open(portal, f"/nodes/{node.id}")
    await expect(page.get_by_role("heading", level=1, name="pump-house-1")).to_be_visible()
    await expect(page.get_by_text("No service runs here.")).to_be_visible()
    trace = 'Traceback (most recent call last):\n  File "Heating.py", line 4\nValueError: no sensor'
    await node.report(
        [
            {
                "id": "heating_py",
                "version": "0.1",
                "state": "failed",
                "pid": None,
                "fault": trace,
                "since": 1_767_225_600.0,
            }
        ]
    )
    services = page.get_by_role("region", name="Services")
    await expect(services.get_by_text("failed")).to_be_visible()
    await expect(services.get_by_text("line 4")).to_be_hidden()
    await services.get_by_text("ValueError: no sensor").first.click()
    await expect(services.get_by_text("line 4")).to_be_visible()

    await node.measure(cpuPercent=12.0, memory={"percent": 41.0}, disk={"percent": 63.0}, temperatureCelsius=48.7)
    machine = page.get_by_role("region", name="Machine")
    await expect(machine.get_by_role("img", name="Processor: 12%")).to_be_visible()
    await expect(machine.get_by_role("img", name="Temperature: 48.7°C")).to_be_visible()
    await node.measure(cpuPercent=30.0, memory={"percent": 41.0}, disk={"percent": 63.0}, temperatureCelsius=48.7)
    await expect(machine.get_by_role("img", name="Processor: 30%")).to_be_visible()

    await node.fault("Door <b>open</b>", code="666", description="for an hour")
    faults = page.get_by_role("region", name="Faults")
    await expect(faults.get_by_text("Door <b>open</b>")).to_be_visible()
    await expect(faults.get_by_text("code 666")).to_be_visible()
    await expect(page.get_by_role("region", name="Timeline").get_by_text("Door <b>open</b>")).to_be_visible()


async def test_readings_that_reach_the_cloud_tick_the_last_of_the_first_steps(portal, pages, node):
    overview = await pages.open(portal, "/")
    steps = overview.get_by_role("region", name="First steps")
    await expect(steps.get_by_role("heading", name="Enrol a node (done)")).to_be_visible()
    await expect(steps.get_by_role("heading", name="See readings", exact=True)).to_be_visible()
    await node.measure(cpuPercent=12.0, outbox={"depth": 2, "acknowledged": 48})
    await expect(steps.get_by_role("heading", name="See readings (done)")).to_be_visible()
    page = await pages.open(portal, f"/nodes/{node.id}")
    machine = page.get_by_role("region", name="Machine")
    await expect(machine.get_by_role("img", name="Delivered: 48 msg")).to_be_visible()
    await expect(machine.get_by_role("img", name="Outbox: 2 msg")).to_be_visible()


async def test_tracking_is_switched_on_and_its_records_come_by_themselves(portal, pages, node):
    page = await pages.open(portal, f"/nodes/{node.id}")
    tracking = page.get_by_role("region", name="Tracking")
    await expect(tracking.get_by_text("Tracking is off.")).to_be_visible()
    await tracking.get_by_role("switch", name="Keep records").click()
    assert (await node.told("changeTracking")).arguments == [True]
    await expect(tracking.get_by_text("No record yet.")).to_be_visible()
    await node.track({"ticket": 4711, "description": "Weighed <b>twice</b>"})
    await expect(tracking.get_by_text("Weighed <b>twice</b>", exact=True)).to_be_visible()
    await tracking.get_by_text("Record", exact=True).click()
    await expect(tracking.get_by_text('"ticket": 4711')).to_be_visible()
    await tracking.get_by_role("switch", name="Keep records").click()
    assert (await node.told("changeTracking")).arguments == [False]
    await expect(tracking.get_by_text("Weighed <b>twice</b>", exact=True)).to_be_visible()


async def test_tags_are_added_and_removed_on_the_node_page(portal, pages, node):
    page = await pages.open(portal, f"/nodes/{node.id}")
    tags = page.get_by_role("region", name="Tags")
    await tags.get_by_label("New tag").fill("#beta")
    await tags.get_by_role("button", name="Add").click()
    await expect(tags.get_by_text("#beta")).to_be_visible()
    assert (await portal.api("GET", f"/api/nodes/{node.id}"))["tags"] == ["beta", "pumps"]
    await tags.get_by_role("button", name="Remove tag beta").click()
    await expect(tags.get_by_text("#beta")).to_have_count(0)
    assert (await portal.api("GET", f"/api/nodes/{node.id}"))["tags"] == ["pumps"]


async def test_ping_answers_and_disabling_says_what_it_means(portal, pages, node):
    page = await pages.open(portal, f"/nodes/{node.id}")
    await page.get_by_role("button", name="Commands").click()
    await page.get_by_role("dialog").get_by_role("button", name="Ping").click()
    await expect(page.get_by_role("dialog").get_by_role("status")).to_contain_text(" ms)")
    await page.keyboard.press("Escape")
    await page.get_by_role("switch", name="Enabled").click()
    await expect(page.get_by_text("This node is disabled")).to_be_visible()
    while (await node.told("updateDeployment")).arguments[0]["state"] != "InActive":
        pass
    await page.get_by_role("switch", name="Enabled").click()
    await expect(page.get_by_text("This node is disabled")).to_have_count(0)


async def test_a_connection_string_is_stored_and_its_key_never_comes_back(portal, pages, node):
    page = await pages.open(portal, f"/nodes/{node.id}")
    hub = page.get_by_role("region", name="Azure IoT Hub")
    await hub.get_by_role("button", name="Set connection string").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Connection string").fill("nonsense")
    await dialog.get_by_role("button", name="Store").click()
    await expect(page.locator(".toast-fault")).to_contain_text("HostName")
    await dialog.get_by_label("Connection string").fill(
        "HostName=hub.example.net;DeviceId=pump-house-1;SharedAccessKey=c2VjcmV0LWtleQ=="
    )
    await dialog.get_by_role("button", name="Store").click()
    await expect(hub).to_contain_text("pump-house-1")
    await page.reload()
    await expect(hub).to_contain_text("hub.example.net")
    assert "c2VjcmV0LWtleQ" not in await page.content()


async def test_the_console_is_off_until_it_is_turned_on_and_then_shows_lines_as_they_come(portal, pages, node):
    page = await pages.open(portal, "/console")
    await expect(page.get_by_text("The console is off on every node.")).to_be_visible()
    await page.get_by_role("switch", name="Console of pump-house-1").click()
    await node.told("changeDebug")
    await node.write("Reading pins 17, 27")
    await node.write("The valve is slow", level="warning", service="Valve")
    await node.write("No sensor", level="error")
    lines = page.get_by_role("log")
    await expect(lines.get_by_text("Reading pins 17, 27")).to_be_visible()
    warning = lines.locator(".level-warning")
    await expect(warning).to_contain_text("warn")
    await expect(warning).to_contain_text("Valve")
    await expect(lines.locator(".level-error")).to_contain_text("error")
    await page.get_by_label("Filter lines").fill("valve")
    await expect(lines.locator(".console-line")).to_have_count(1)
    await page.get_by_label("Filter lines").fill("")
    await page.get_by_label("Level").select_option("error")
    await expect(lines.locator(".console-line")).to_have_count(1)
    await page.get_by_label("Level").select_option("")

    await page.get_by_role("button", name="Pause").click()
    await node.write("while paused")
    await expect(page.get_by_text("paused, 1 new")).to_be_visible()
    await expect(lines.get_by_text("while paused")).to_have_count(0)
    await page.get_by_role("button", name="Resume").click()
    await expect(lines.get_by_text("while paused")).to_be_visible()
    await page.get_by_role("button", name="Clear").click()
    await expect(lines.locator(".console-line")).to_have_count(0)

    node_page = await pages.open(portal, f"/nodes/{node.id}")
    console = node_page.get_by_role("region", name="Console")
    await expect(console.get_by_text("No sensor")).to_be_visible()
    await expect(console.get_by_role("switch")).to_have_attribute("aria-checked", "true")


async def test_the_console_keeps_a_bounded_number_of_lines(portal, pages, node):
    await portal.api("PUT", f"/api/nodes/{node.id}/console", {"on": True})
    page = await pages.open(portal, "/console")
    await expect(page.get_by_role("log")).to_be_visible()
    for number in range(1100):
        await node.write(f"line {number}")
    await expect(page.get_by_text("line 1099", exact=True)).to_be_visible()
    await expect(page.locator(".console-line")).to_have_count(1000)


async def test_a_deleted_node_takes_its_open_page_back_to_the_list(portal, pages, fake_node, tmp_path):
    code = await portal.api("POST", "/api/verification-codes", {"name": "old"})
    node = await fake_node.enrol(portal, code["code"], tmp_path)
    page = await pages.open(portal, f"/nodes/{node.id}")
    await page.get_by_role("button", name="Delete this node").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete this node").click()
    await expect(page).to_have_url(f"{portal.url}/nodes")
    await expect(page.get_by_role("link", name="old")).to_have_count(0)
