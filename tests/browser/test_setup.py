"""The first minutes with a portal: set up, sign out, sign in."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_portal_without_an_owner_tells_how_to_set_it_up(fresh_portal, pages):
    page = await pages.open(fresh_portal, "/nodes")
    await expect(page.get_by_role("heading", name="Set up this portal first")).to_be_visible()
    await expect(page.get_by_text("one-time set-up link")).to_be_visible()


async def test_a_set_up_link_without_its_token_says_what_is_missing(fresh_portal, pages):
    page = await pages.open(fresh_portal, "/setup")
    await expect(page.get_by_text("Open the whole link")).to_be_visible()


async def test_set_up_refuses_two_different_passwords_and_a_short_one_and_a_wrong_token(fresh_portal, pages):
    pages.expect(r"status of 4\d\d")
    page = await pages.open(fresh_portal, "/setup?token=wrong")
    await page.get_by_label("Your name").fill("alice")
    await page.get_by_label("Password", exact=True).fill("short")
    await page.get_by_label("Password again").fill("other")
    await page.get_by_role("button", name="Create the owner").click()
    await expect(page.get_by_role("alert")).to_contain_text("not the same")
    await page.get_by_label("Password again").fill("short")
    await page.get_by_role("button", name="Create the owner").click()
    await expect(page.get_by_role("alert")).to_contain_text("use at least 10")
    for label in ("Password", "Password again"):
        await page.get_by_label(label, exact=True).fill("long enough to be one")
    await page.get_by_role("button", name="Create the owner").click()
    await expect(page.get_by_role("alert")).to_contain_text("set-up link is not valid")


async def test_set_up_signs_in_and_sign_out_and_in_lead_back_to_the_page(fresh_portal, pages):
    pages.expect(r"status of 401")
    page = await pages.open(fresh_portal, fresh_portal.setup_path)
    await page.get_by_label("Organisation").fill("Water works")
    await page.get_by_label("Your name").fill("alice")
    for label in ("Password", "Password again"):
        await page.get_by_label(label, exact=True).fill("a long enough password")
    await page.get_by_role("button", name="Create the owner").click()
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await expect(page.get_by_role("heading", name="First steps")).to_be_visible()
    cookies = await page.context.cookies()
    assert [(each["name"], each["httpOnly"]) for each in cookies] == [("outstation_session", True)]

    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert await page.context.cookies() == []

    await page.goto("/services?from=a-link")
    await expect(page).to_have_url(re.compile(r"/signin\?next="))
    await page.get_by_label("Name").fill("alice")
    await page.get_by_label("Password").fill("not the password")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("Name or password is wrong")
    await page.get_by_label("Password").fill("a long enough password")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{fresh_portal.url}/services?from=a-link")
    await page.goto(fresh_portal.setup_path)
    await expect(page).to_have_url(f"{fresh_portal.url}/")


async def test_signing_in_never_leads_to_another_site(fresh_portal, pages):
    page = await pages.open(fresh_portal, "/signin?next=https://example.com/")
    await page.get_by_label("Name").fill("alice")
    await page.get_by_label("Password").fill("a long enough password")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{fresh_portal.url}/")
