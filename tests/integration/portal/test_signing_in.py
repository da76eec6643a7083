from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from portal.settings import Settings
from portal.testing import OWNER, PASSWORD, FakeClock, PortalClient, RunningPortal

DAY = 86_400


def setup_token(running: RunningPortal) -> str:
    assert running.portal.setup_url is not None
    return running.portal.setup_url.partition("token=")[2]


async def test_setup_link_creates_the_owner_once_and_signs_in(running: RunningPortal) -> None:
    form = {"token": setup_token(running), "name": "alice", "password": "a long sentence", "organization": "Water"}
    async with running.client() as client:
        made = await client.call("POST", "/api/setup", form)
        me = await client.done("GET", "/api/me")
        again = await client.call("POST", "/api/setup", form)
    assert made.status == 201
    assert (me["name"], me["role"], me["organization_name"]) == ("alice", "owner", "Water")
    assert (again.status, again.code) == (403, "setup_token_invalid")


async def test_session_cookie_is_for_the_browser_only(running: RunningPortal) -> None:
    async with running.client() as client:
        form = {"token": setup_token(running), "name": "alice", "password": "a long sentence"}
        made = await client.call("POST", "/api/setup", form)
    cookie = made.headers["Set-Cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie


async def test_session_cookie_is_secure_under_tls(tmp_path: Path) -> None:
    async with RunningPortal(Settings(data=tmp_path, self_signed=True)) as running, running.client() as client:
        form = {"token": setup_token(running), "name": "alice", "password": "a long sentence"}
        made = await client.call("POST", "/api/setup", form)
    assert "secure" in made.headers["Set-Cookie"].lower()
    assert "max-age" in made.headers["Strict-Transport-Security"]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"token": "guessed"}, 403, "setup_token_invalid"),
        ({"password": "too short"}, 422, "password_too_short"),
        ({"name": ""}, 422, "request_invalid"),
        ({"passwort": "a long sentence"}, 422, "request_invalid"),
    ],
)
async def test_wrong_setup_is_refused_and_changes_nothing(
    running: RunningPortal, change: dict[str, str], status: int, code: str
) -> None:
    form = {"token": setup_token(running), "name": "alice", "password": "a long sentence"} | change
    async with running.client() as client:
        answer = await client.call("POST", "/api/setup", form)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert await running.portal.accounts.needs_setup()


async def test_restart_without_an_owner_makes_a_new_link_and_the_old_one_is_void(tmp_path: Path) -> None:
    async with RunningPortal(Settings(data=tmp_path)) as first:
        old = setup_token(first)
    async with RunningPortal(Settings(data=tmp_path)) as second, second.client() as client:
        assert setup_token(second) != old
        form = {"token": old, "name": "alice", "password": "a long sentence"}
        refused = await client.call("POST", "/api/setup", form)
        taken = await client.call("POST", "/api/setup", form | {"token": setup_token(second)})
    assert refused.code == "setup_token_invalid"
    assert taken.status == 201


async def test_restart_with_an_owner_makes_no_link(tmp_path: Path) -> None:
    async with RunningPortal(Settings(data=tmp_path)) as first, first.owner():
        pass
    async with RunningPortal(Settings(data=tmp_path)) as second:
        assert second.portal.setup_url is None


async def test_session_survives_a_restart_of_the_portal(tmp_path: Path) -> None:
    async with RunningPortal(Settings(data=tmp_path)) as first, first.owner() as client:
        cookies = {cookie.key: cookie.value for cookie in client.session.cookie_jar}
    async with RunningPortal(Settings(data=tmp_path)) as second, second.client() as client:
        client.session.cookie_jar.update_cookies(cookies)
        assert (await client.done("GET", "/api/me"))["name"] == OWNER


async def test_sign_out_ends_the_session_on_the_server(running: RunningPortal, owner: PortalClient) -> None:
    cookies = {cookie.key: cookie.value for cookie in owner.session.cookie_jar}
    await owner.done("DELETE", "/api/session")
    owner.session.cookie_jar.update_cookies(cookies)
    answer = await owner.call("GET", "/api/me")
    assert (answer.status, answer.code) == (401, "not_signed_in")


async def test_session_ends_after_seven_days_without_use(owner: PortalClient, clock: FakeClock) -> None:
    await clock.advance(6 * DAY)
    assert (await owner.call("GET", "/api/me")).status == 200
    await clock.advance(6 * DAY)
    assert (await owner.call("GET", "/api/me")).status == 200
    await clock.advance(7 * DAY + 1)
    assert (await owner.call("GET", "/api/me")).status == 401


async def test_session_in_daily_use_ends_after_thirty_days_and_the_cookie_lives_as_long(
    owner: PortalClient, clock: FakeClock
) -> None:
    signed_in = await owner.call("POST", "/api/session", {"name": OWNER, "password": PASSWORD})
    assert f"Max-Age={30 * DAY}" in signed_in.headers["Set-Cookie"]
    for _ in range(5):
        await clock.advance(6 * DAY)
        assert (await owner.call("GET", "/api/me")).status == 200
    await clock.advance(1)
    assert (await owner.call("GET", "/api/me")).status == 401


async def test_wrong_password_and_unknown_name_get_the_same_answer(running: RunningPortal, owner: PortalClient) -> None:
    wrong = await owner.call("POST", "/api/session", {"name": OWNER, "password": "not the password"})
    unknown = await owner.call("POST", "/api/session", {"name": "nobody", "password": "not the password"})
    assert (wrong.status, wrong.code) == (401, "sign_in_failed")
    assert wrong.body == unknown.body


async def test_sign_in_name_is_without_regard_to_case(running: RunningPortal, owner: PortalClient) -> None:
    async with running.client() as other:
        await other.done("POST", "/api/session", {"name": OWNER.upper(), "password": PASSWORD})


async def test_guessing_a_password_has_to_wait_longer_and_longer(
    running: RunningPortal, owner: PortalClient, clock: FakeClock
) -> None:
    wrong = {"name": OWNER, "password": "not the password"}
    for _ in range(5):
        assert (await owner.call("POST", "/api/session", wrong)).status == 401
    waiting = await owner.call("POST", "/api/session", {"name": OWNER, "password": PASSWORD})
    assert (waiting.status, waiting.code, waiting.headers["Retry-After"]) == (429, "too_many_attempts", "1")
    await clock.advance(1)
    assert (await owner.call("POST", "/api/session", wrong)).status == 401
    longer = await owner.call("POST", "/api/session", wrong)
    assert longer.headers["Retry-After"] == "2"


async def test_good_password_forgets_the_failures(owner: PortalClient, clock: FakeClock) -> None:
    wrong = {"name": OWNER, "password": "not the password"}
    for _ in range(4):
        await owner.call("POST", "/api/session", wrong)
    await owner.sign_in()
    for _ in range(4):
        assert (await owner.call("POST", "/api/session", wrong)).status == 401
    await owner.sign_in()


async def test_guessing_one_name_does_not_lock_out_another(running: RunningPortal, owner: PortalClient) -> None:
    for _ in range(6):
        await owner.call("POST", "/api/session", {"name": "mallory", "password": "not the password"})
    await owner.sign_in()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
)
async def test_request_that_another_site_can_make_a_browser_send_is_refused(
    owner: PortalClient, headers: dict[str, str]
) -> None:
    answer = await owner.call("POST", "/api/verification-codes", raw=b'{"tags": []}', headers=headers)
    assert (answer.status, answer.code) == (403, "cross_site_request")


async def test_signing_in_from_another_site_is_refused(running: RunningPortal) -> None:
    async with running.client() as client:
        form = {"name": OWNER, "password": PASSWORD}
        answer = await client.call("POST", "/api/session", form, headers={"Origin": "https://evil.example"})
    assert (answer.status, answer.code) == (403, "cross_site_request")


async def test_requests_of_the_portals_own_pages_and_of_programs_pass(
    running: RunningPortal, owner: PortalClient
) -> None:
    for headers in ({}, {"Origin": running.url}, {"Sec-Fetch-Site": "same-origin"}):
        answer = await owner.call("POST", "/api/verification-codes", {}, headers=headers)
        assert answer.status == 201, headers


async def test_pages_behind_a_proxy_that_hides_their_address_are_the_portals_own(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, public_url="https://portal.example")
    async with RunningPortal(settings) as running, running.client() as client:
        address = f"http://127.0.0.1:{running.portal.settings.port}"
        statuses = [
            (await client.session.delete(f"{address}/api/session", headers={"Origin": origin})).status
            for origin in ("https://portal.example", address, "https://evil.example", "null")
        ]
    assert statuses == [204, 204, 403, 403]


async def test_websocket_of_another_site_is_refused(running: RunningPortal, owner: PortalClient) -> None:
    headers = {"Origin": "https://evil.example", "Upgrade": "websocket", "Connection": "Upgrade"}
    headers |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    answer = await owner.call("GET", "/_nicegui_ws/socket.io/?transport=websocket", headers=headers)
    assert answer.status == 403


async def test_pages_connection_without_a_websocket_is_refused_to_another_site_too(
    running: RunningPortal, owner: PortalClient
) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = await owner.call("GET", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", headers=headers)
        assert (answer.status, answer.code) == (403, "cross_site_request"), headers


async def test_answers_carry_security_headers(running: RunningPortal, owner: PortalClient) -> None:
    answer = await owner.call("GET", "/api/me")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"


async def test_flood_of_sign_ins_is_refused_before_it_queues_up(running: RunningPortal, owner: PortalClient) -> None:
    forms = [{"name": f"nobody-{number}", "password": "not the password"} for number in range(80)]
    answers = await asyncio.gather(*(owner.call("POST", "/api/session", form) for form in forms))
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert {answer.code for answer in refused} == {"too_many_attempts"}
    assert {answer.status for answer in answers} == {401, 429}
    await owner.sign_in()
