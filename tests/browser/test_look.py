"""How every page looks, in both themes and at both widths, and what that must hold to be used by everybody."""

from __future__ import annotations

from contextlib import AsyncExitStack
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from portal.nodes.readings import readings_of
from portal.web.header40 import PINS, drawing, pins_of
from portal.web.theme import DARK, LIGHT, SHAPE_PAIRS, TEXT_PAIRS, contrast, style_sheet

PHONE, DESKTOP = 390, 1280
BOOT = 1_767_225_600.0

COMPLAINTS = Path(__file__).with_name("accessibility.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_a_contrast_of_at_least_four_and_a_half_and_shapes_of_three(theme):
    too_low = {
        f"{ink} on {ground}": round(contrast(theme[ink], theme[ground]), 2)
        for pairs, least in ((TEXT_PAIRS, 4.5), (SHAPE_PAIRS, 3.0))
        for ink, ground in pairs
        if contrast(theme[ink], theme[ground]) < least
    }
    assert too_low == {}


def test_both_themes_define_the_same_tokens_and_the_style_sheet_uses_no_other_colour():
    assert list(LIGHT) == list(DARK)
    sheet = style_sheet()
    rules = sheet.partition("/* Scale")[2]
    assert "#" not in rules.replace("#{", ""), "a colour stands outside the tokens"
    used = {part.partition(")")[0] for part in rules.split("var(--")[1:]}
    own = {part.partition(":")[0] for part in rules.split("  --")[1:]}
    assert used - own - set(LIGHT) == set()


def test_black_on_white_has_the_highest_contrast():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#777777") == 1.0


def test_the_header_has_forty_pins_with_the_numbers_of_a_raspberry_pi():
    assert [pin.number for pin in PINS] == list(range(1, 41))
    assert sorted(pin.bcm for pin in PINS if pin.bcm is not None) == list(range(28))
    by_number = {pin.number: pin for pin in PINS}
    assert [by_number[number].name for number in (1, 2, 6, 11, 40)] == ["3.3 V", "5 V", "Ground", "GPIO 17", "GPIO 21"]
    assert [pin.number for pin in PINS if pin.kind == "ground"] == [6, 9, 14, 20, 25, 30, 34, 39]


@pytest.mark.parametrize(
    ("properties", "pins"),
    [
        ({"pins": "17,27"}, {17, 27}),
        ({"gpio_pin": 22}, {22}),
        ({"ledPin": "GPIO4"}, {4}),
        ({"pins": [5, "6"]}, {5, 6}),
        ({"pins": "99"}, set()),
        ({"interval": 17, "pinned": "17", "opinion": "4"}, set()),
    ],
)
def test_pins_are_found_in_the_properties_that_name_them(properties, pins):
    assert pins_of(properties) == pins


def test_the_header_s_drawing_escapes_what_services_are_called():
    svg = drawing({17: '<script>"x"'})
    HTMLParser().feed(svg)
    assert "<script" not in svg
    assert "GPIO 17 by &lt;script&gt;" in svg


def test_readings_are_found_whatever_a_node_leaves_out():
    facts = {
        "cpuPercent": 3,
        "memory": {"percent": 40.5},
        "disk": None,
        "temperatureCelsius": None,
        "outbox": {"depth": 7, "acknowledged": 12},
    }
    assert readings_of(facts) == {"cpu": 3.0, "memory": 40.5, "outbox": 7.0, "delivered": 12.0}
    assert readings_of({"cpuPercent": True, "memory": "much"}) == {}


async def look(page: Page, path: str) -> None:
    """Open a page and check what must hold on each."""
    await page.goto(path)
    await expect(page.get_by_role("heading", level=1)).to_be_visible()
    if path.startswith("/services/"):
        # The editor has its name a moment after its first line.
        await expect(page.get_by_role("textbox", name="Source")).to_be_visible()
    await page.evaluate("document.fonts.ready")
    wide = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], f"{path} is wider than the window: {wide}"
    assert await page.evaluate(COMPLAINTS) == [], path


async def fill(portal, node_class, folder, stack: AsyncExitStack) -> list[str]:
    """Give the portal a small fleet with something of everything; the addresses of its pages."""
    ids = {}
    fleet = [
        ("pump-house-1", ["pumps", "north"], True),
        ("pump-house-2", ["pumps", "south"], True),
        ("greenhouse", ["climate"], True),
        ("weather-mast", ["climate", "north"], False),
        ("attic-with-a-very-long-name-that-does-not-end", [], True),
    ]
    nodes = []
    for name, tags, online in fleet:
        code = await portal.api("POST", "/api/verification-codes", {"name": name, "tags": tags})
        node = await node_class.enrol(portal, code["code"], folder / name)
        ids[name] = node.id
        if online:
            nodes.append(await stack.enter_async_context(node.online()))
    for library in ("ReadGPIO", "SystemMetrics"):
        await portal.api("POST", "/api/services", {"from": f"library:{library}"})
    await portal.api("POST", "/api/services/readgpio_py/versions", {"bump": "minor"})
    doors = {"service_id": "readgpio_py", "host": "#pumps", "static": {"pins": "17, 27, 22", "debounce": 0.02}}
    metrics = {"service_id": "systemmetrics_py", "host": "#ALL"}
    flow = await portal.api("POST", "/api/flows", {"name": "Pump houses", "activities": [doors, metrics]})
    await portal.api("POST", "/api/flows", {"name": "Trial", "enabled": False, "description": "Not yet"})
    await portal.api("PUT", f"/api/nodes/{ids['pump-house-1']}/console", {"on": True})
    await nodes[0].told("changeDebug")
    for number in range(12):
        await nodes[0].write(f'{{"pin": 17, "value": {number % 2}, "edge": "rising", "count": {number}}}')
        if number % 4 == 1:
            await nodes[0].write("The pump answers slowly: 2.4 s, the limit is 2 s", level="warning", service="Pump")
        if number % 6 == 3:
            await nodes[0].write("No sensor found on the 1-Wire bus", level="error", service="Heating")
    trace = 'Traceback (most recent call last):\n  File "SystemMetrics.py", line 41, in Start\nOSError: no sensor'
    running = {"id": "readgpio_py", "version": "0.2", "state": "running", "pid": 811, "fault": "", "since": BOOT}
    waiting = {"id": "systemmetrics_py", "version": "0.1", "state": "backing_off", "fault": trace, "since": BOOT}
    await nodes[0].report([running, {**waiting, "pid": None}])
    await nodes[0].fault("Pin 22 cannot be read: 'GPIO busy' (may the agent's user open /dev/gpiochip0?)")
    await nodes[2].fault("OSError: no sensor", code="90000", service="SystemMetrics", description=trace)
    for node, processor in zip(nodes, (12.0, 7.0, 31.0, 3.0), strict=True):
        await node.measure(
            cpuPercent=processor,
            memory={"percent": 41.0},
            disk={"percent": 63.0},
            temperatureCelsius=48.7,
            outbox={"depth": 3, "acknowledged": 48_211},
            model="Raspberry Pi 4 Model B Rev 1.4",
            operatingSystem="Debian GNU/Linux 12 (bookworm)",
            python="3.11.2",
        )
    return [
        "/",
        "/nodes",
        f"/nodes/{ids['pump-house-1']}",
        f"/nodes/{ids['weather-mast']}",
        "/services",
        "/services/readgpio_py",
        "/flows",
        "/flows/new",
        f"/flows/{flow['id']}",
        "/console",
    ]


def name_of(path: str) -> str:
    """A file name: ids are numbered away."""
    parts = path.partition("?")[0].strip("/").split("/")
    return "-".join(part if len(part) < 30 else "one" for part in parts) or "overview"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.asyncio(loop_scope="module")
async def test_every_page_is_shown_in_both_themes_and_widths(
    fresh_portal, portal, pages, fake_node, tmp_path, screenshots
):
    looks = [(width, theme) for width in (DESKTOP, PHONE) for theme in ("light", "dark")]
    for width, theme in looks:
        page = await pages.open(fresh_portal, width=width, height=844, theme=theme)
        for path, name in ((fresh_portal.setup_path, "setup"), ("/signin", "signin-before-setup")):
            await look(page, path)
            await page.screenshot(path=screenshots(f"{name}-{width}-{theme}"), full_page=True)
    for width, theme in ((DESKTOP, "light"), (PHONE, "dark")):
        page = await pages.open(portal, width=width, height=844, theme=theme)
        for path in ("/", "/nodes", "/services", "/flows", "/flows/new", "/console"):
            await look(page, path)
            await page.screenshot(path=screenshots(f"empty-{name_of(path)}-{width}-{theme}"), full_page=True)
    async with AsyncExitStack() as stack:
        paths = await fill(portal, fake_node, tmp_path, stack)
        for width, theme in looks:
            page = await pages.open(portal, width=width, height=844, theme=theme)
            for index, path in enumerate(paths):
                await look(page, path)
                name = f"{index:02}-{name_of(path)}-{width}-{theme}"
                await page.screenshot(path=screenshots(name), full_page=True)
            await page.goto("/nodes")
            await page.get_by_role("button", name="Add a node").first.click()
            await page.get_by_role("button", name="Make the code").click()
            await expect(page.get_by_text("Waiting for the node")).to_be_visible()
            await page.screenshot(path=screenshots(f"dialog-add-node-{width}-{theme}"))
            await page.goto("/services")
            await page.get_by_role("button", name="New service").click()
            await expect(page.get_by_label("File name")).to_be_visible()
            await page.screenshot(path=screenshots(f"dialog-new-service-{width}-{theme}"))
    signed_out = await pages.open(fresh_portal, width=PHONE)
    pages.expect(r"status of 404")
    await look(signed_out, "/nowhere")
    await signed_out.screenshot(path=screenshots("not-found"))


@pytest.mark.asyncio(loop_scope="module")
async def test_the_theme_follows_the_system_until_it_is_chosen_and_the_choice_stays(portal, pages):
    page = await pages.open(portal, "/", theme="light")
    root = page.locator("html")
    await expect(root).to_have_attribute("data-theme", "light")
    await page.emulate_media(color_scheme="dark")
    await expect(root).to_have_attribute("data-theme", "dark")
    await page.get_by_role("radio", name="Light").click()
    await expect(root).to_have_attribute("data-theme", "light")
    await page.reload()
    await expect(root).to_have_attribute("data-theme", "light")
    await expect(page.get_by_role("radio", name="Light")).to_be_checked()
    await page.get_by_role("radio", name="System").click()
    await expect(root).to_have_attribute("data-theme", "dark")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_keyboard_reaches_the_content_first_and_closes_a_dialog(portal, pages):
    page = await pages.open(portal, "/nodes")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Add a node").first).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog", name="Add a node")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_ended_session_asks_to_sign_in_at_the_next_action(portal, pages):
    page = await pages.open(portal, "/nodes")
    await page.evaluate("fetch('/api/session', {method: 'DELETE'})")
    await page.get_by_role("button", name="Add a node").first.click()
    await page.get_by_role("button", name="Make the code").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await portal.sign_in()
