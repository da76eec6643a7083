"""Services and flows in the pages: write, save, version, assign."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """from base_service import CustomService

class {name}(CustomService):
    async def Start(self):
        await self.Debug("hello")
"""


async def create_service(page: Page, file: str) -> None:
    await page.goto("/services")
    await page.get_by_role("button", name="New service").first.click()
    await page.get_by_role("dialog").get_by_label("File name").fill(file)
    await page.get_by_role("dialog").get_by_role("button", name="Create").click()
    await expect(page.get_by_role("region", name="Editor")).to_be_visible()


async def type_source(page: Page, source: str) -> None:
    await page.get_by_role("textbox", name="Source").click()
    await page.keyboard.press("Control+a")
    await page.keyboard.press("Delete")
    # One insertion, as from a clipboard: the editor indents what is typed by itself.
    await page.keyboard.insert_text(source)


async def test_a_service_from_the_template_is_checked_while_typing_and_saved(portal, pages):
    page = await pages.open(portal)
    await create_service(page, "MyService.py")
    editor = page.get_by_role("region", name="Editor")
    verdict = editor.get_by_role("status")
    await expect(verdict).to_contain_text("Syntax and class name are right")

    await type_source(page, SCRIPT.format(name="Other"))
    await expect(verdict).to_contain_text("MyService")
    await expect(verdict).to_contain_text("Other")
    await page.get_by_role("button", name="Save").click()
    await expect(page.locator(".toast-fault")).to_contain_text("Other")
    assert "class Other" not in (await portal.api("GET", "/api/services/myservice_py/versions/0.1/source"))["source"]

    await type_source(page, "class MyService(:\n    pass\n")
    await expect(verdict).to_contain_text("Line 1")
    await expect(editor.locator(".cm-wrong-line")).to_have_count(1)

    await type_source(page, SCRIPT.format(name="MyService"))
    await expect(verdict).to_contain_text("Syntax and class name are right")
    await expect(editor.get_by_text("Not saved yet")).to_be_visible()
    await page.keyboard.press("Control+s")
    await expect(page.get_by_text("Saved as 0.1")).to_be_visible()
    await expect(editor.get_by_text("Not saved yet")).to_have_count(0)
    stored = await portal.api("GET", "/api/services/myservice_py/versions/0.1/source")
    assert stored["source"] == SCRIPT.format(name="MyService")


async def test_what_somebody_else_saved_is_not_overwritten_unasked(portal, pages):
    page = await pages.open(portal)
    await create_service(page, "Shared.py")
    path = "/api/services/shared_py/versions/0.1/source"
    theirs = SCRIPT.format(name="Shared") + "# theirs\n"
    await portal.api("PUT", path, {"source": theirs})
    await type_source(page, SCRIPT.format(name="Shared") + "# mine\n")
    await page.get_by_role("button", name="Save").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("heading", name="Somebody saved in between")).to_be_visible()
    assert (await portal.api("GET", path))["source"] == theirs
    await dialog.get_by_role("button", name="Load theirs").click()
    await expect(page.get_by_role("textbox", name="Source")).to_contain_text("# theirs")


async def test_update_minor_and_major_freeze_the_version_before(portal, pages):
    page = await pages.open(portal)
    await create_service(page, "Versions.py")
    versions = page.get_by_role("region", name="Versions")
    await page.get_by_role("button", name="Update minor").click()
    await expect(versions.get_by_role("button", name=re.compile(r"^0\.2 .*newest"))).to_be_visible()
    await page.get_by_role("button", name="Update major").click()
    await expect(versions.get_by_role("button", name=re.compile(r"^1\.0 .*newest"))).to_be_visible()
    await versions.get_by_role("button", name=re.compile(r"^0\.1 .*frozen")).click()
    await expect(page.get_by_text("Frozen: only the newest version can be changed")).to_be_visible()
    await expect(page.get_by_role("button", name="Save")).to_be_disabled()


async def test_a_library_service_is_imported_with_one_click_and_brings_its_properties(portal, pages):
    page = await pages.open(portal, "/services")
    await page.get_by_role("button", name="Import ReadGPIO").click()
    await expect(page.get_by_text("in your services", exact=True)).to_be_visible()
    await page.get_by_role("link", name=re.compile("ReadGPIO.py")).click()
    properties = page.get_by_role("region", name="Properties")
    await expect(properties.get_by_label("Id").first).to_have_value("pins")


async def test_properties_are_designed_and_make_the_flow_s_form(portal, pages, node):
    page = await pages.open(portal)
    await create_service(page, "Heating.py")
    properties = page.get_by_role("region", name="Properties")
    await properties.get_by_role("button", name="Add a static property").click()
    await properties.get_by_label("Id").fill("target")
    await properties.get_by_label("Label").fill("Target temperature")
    await properties.get_by_label("Type").select_option("number")
    await properties.get_by_label("Default").fill("21.5")
    await properties.get_by_role("button", name="Add a security property").click()
    await properties.get_by_label("Id").nth(1).fill("token")
    await properties.get_by_label("Label").nth(1).fill("Boiler token")
    await properties.get_by_role("button", name="Store properties").click()
    await expect(page.get_by_text("Properties stored.")).to_be_visible()

    await page.goto("/flows/new?service=heating_py")
    await page.get_by_label("Name", exact=True).fill("Heat")
    await expect(page.get_by_label("Target temperature")).to_have_value("21.5")
    await page.get_by_label("Target temperature").fill("19")
    await page.get_by_label("Boiler token").fill("very secret")
    await page.get_by_label("Runs on").fill("#pumps")
    impact = page.get_by_role("region", name="What saving changes")
    await expect(impact).to_contain_text("pump-house-1")
    await expect(impact).to_contain_text("starts")
    await page.get_by_role("button", name="Create").click()
    await expect(page.get_by_role("heading", level=1, name="Heat")).to_be_visible()
    await node.told("updateDeployment")

    await expect(page.get_by_label("Target temperature")).to_have_value("19")
    await expect(page.get_by_label("Boiler token")).to_have_value("")
    assert "very secret" not in await page.content()
    await page.get_by_label("Target temperature").fill("18")
    await expect(impact).to_contain_text("restarts")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_text("Saved.")).to_be_visible()
    flows = (await portal.api("GET", "/api/flows"))["items"]
    activity = next(flow for flow in flows if flow["name"] == "Heat")["activities"][0]
    assert activity["static"] == {"target": 18}
    assert list(activity["security"]) == ["token"]

    await page.goto("/services/heating_py")
    await expect(page.get_by_role("region", name="Used by")).to_contain_text("Heat")
    await page.get_by_role("button", name="Delete this service").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(page.locator(".toast-fault")).to_contain_text("Heat")


async def test_pins_that_a_flow_gives_to_a_service_are_marked_on_the_header(portal, pages, node):
    services = (await portal.api("GET", "/api/services"))["items"]
    if not any(each["id"] == "readgpio_py" for each in services):
        await portal.api("POST", "/api/services", {"from": "library:ReadGPIO"})
    activity = {"service_id": "readgpio_py", "host": "pump-house-1", "static": {"pins": "17, 22"}}
    await portal.api("POST", "/api/flows", {"name": "Doors", "activities": [activity]})
    page = await pages.open(portal, f"/nodes/{node.id}")
    header = page.get_by_role("region", name="Pins").get_by_role("img")
    await expect(header).to_have_attribute("aria-label", re.compile("GPIO 17 by ReadGPIO, GPIO 22 by ReadGPIO"))


async def test_a_flow_is_switched_off_in_the_list_and_deleted_on_its_page(portal, pages, node):
    await portal.api("POST", "/api/flows", {"name": "Short-lived", "activities": []})
    page = await pages.open(portal, "/flows")
    await page.get_by_role("switch", name="Short-lived is on").click()
    await expect(page.get_by_role("switch", name="Short-lived is off")).to_be_visible()
    await page.get_by_role("link", name="Short-lived").click()
    await page.get_by_role("button", name="Delete this flow").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete this flow").click()
    await expect(page).to_have_url(f"{portal.url}/flows")
    await expect(page.get_by_role("link", name="Short-lived")).to_have_count(0)


async def test_an_unknown_page_and_an_unknown_node_say_so_in_the_portal_s_own_look(portal, pages):
    pages.expect(r"status of 404")
    page = await pages.open(portal, "/nowhere")
    await expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    await page.goto("/nodes/00000000-0000-0000-0000-000000000000")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Not found")
    await page.get_by_role("link", name="Go to the overview").click()
    await expect(page.get_by_role("heading", level=1, name="Overview")).to_be_visible()
