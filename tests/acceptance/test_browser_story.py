"""The whole way in the browser: from the one-time link to a Debug line of one's own service in the console."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
PASSWORD = "a long enough password"
SOURCE = """from base_service import CustomService

class Hello(CustomService):
    async def Start(self):
        await self.Debug(f"hello from {self.get_settings()['nodeName']}")
"""


@pytest.fixture
def page() -> Iterator[Page]:
    assert CHROMIUM.exists(), "The browser tests need chromium: run 'make test' as root, or install it."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        yield page
        browser.close()


def test_first_service_from_set_up_link_to_console_line(site, page):
    portal = site.start_portal()
    page.goto(site.setup_link(portal))
    page.get_by_label("Your name").fill("alice")
    for label in ("Password", "Password again"):
        page.get_by_label(label, exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Create the owner").click()
    expect(page.get_by_role("heading", level=1, name="Overview")).to_be_visible()

    page.goto(site.portal_url + "/nodes")
    page.get_by_role("button", name="Add a node").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("pi")
    dialog.get_by_role("button", name="Make the code").click()
    # What a person pastes on the Pi.
    command = shlex.split(dialog.get_by_label("Enrol command", exact=True).inner_text())
    result = site.call(*command[command.index("outstation") + 1 :], "--state-dir", site.folder / "node")
    assert result.returncode == 0, result.stderr
    expect(dialog.get_by_role("heading", name="pi has joined")).to_be_visible()
    site.start_agent()

    page.goto(site.portal_url + "/services")
    page.get_by_role("button", name="New service").first.click()
    page.get_by_role("dialog").get_by_label("File name").fill("Hello.py")
    page.get_by_role("dialog").get_by_role("button", name="Create").click()
    page.get_by_role("textbox", name="Source").click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(SOURCE)
    expect(page.get_by_text("Syntax and class name are right")).to_be_visible()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved as 0.1")).to_be_visible()

    page.goto(site.portal_url + "/console")
    page.get_by_role("button", name="Turn it on for pi").click()
    console = page.context.new_page()
    console.goto(site.portal_url + "/console")

    page.goto(site.portal_url + "/flows/new?service=hello_py")
    page.get_by_label("Name", exact=True).fill("Greetings")
    page.get_by_label("Runs on").fill("pi")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", level=1, name="Greetings")).to_be_visible()

    expect(console.get_by_text("hello from pi")).to_be_visible()
