"""Enrolment on the command line against a real portal: each refusal is one sentence, one status, and no trace."""

import socket
import subprocess

import pytest


@pytest.fixture
def portal(site):
    site.start_portal()
    site.set_up_portal()
    return site


def enroll(site, url, *arguments):
    return site.call("enroll", url, *arguments, "--state-dir", site.folder / "node")


def one_sentence(result, status, *words):
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


def test_good_code_enrols_once(portal):
    code = portal.code()
    result = enroll(portal, portal.portal_url, "--code", code, "--name", "pi")
    assert result.returncode == 0, result.stderr
    assert "outstation run" in result.stdout
    one_sentence(enroll(portal, portal.portal_url, "--code", code), 25, "enrolled already", "pi")
    again = portal.call(
        "enroll", portal.portal_url, "--code", code, "--name", "other", "--state-dir", portal.folder / "other"
    )
    one_sentence(again, 20, "Get a new one in the portal")


def test_wrong_code(portal):
    one_sentence(enroll(portal, portal.portal_url, "--code", "WRONG-WRONG"), 20, "WRONG-WRONG", "Get a new one")
    assert not (portal.folder / "node").exists()


def test_taken_name_leaves_the_code_good(portal):
    portal.call(
        "enroll", portal.portal_url, "--code", portal.code(), "--name", "pi", "--state-dir", portal.folder / "first"
    )
    code = portal.code()
    one_sentence(enroll(portal, portal.portal_url, "--code", code, "--name", "pi"), 21, "pi already", "--name")
    assert not (portal.folder / "node").exists()
    assert enroll(portal, portal.portal_url, "--code", code, "--name", "pi-2").returncode == 0


def test_portal_that_does_not_answer(site):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one_sentence(enroll(site, f"http://127.0.0.1:{port}", "--code", "X"), 22, "cannot be reached")
    assert not (site.folder / "node").exists()


def test_certificate_that_is_not_trusted_or_not_the_pinned_one(site):
    ready = site.folder / "tls.json"
    process = site.start(
        "portal-tls",
        *("portal", "run", "--host", "127.0.0.1", "--port", str(site.free_port()), "--self-signed"),
        *("--data", site.folder / "portal-tls", "--ready-file", ready),
    )
    url = site.ready(process, ready)["url"]
    assert url.startswith("https://")
    one_sentence(enroll(site, url, "--code", "X"), 23, "is not trusted", "--fingerprint")
    one_sentence(enroll(site, url, "--code", "X", "--fingerprint", "00" * 32), 23, "not the pinned one")
    assert not (site.folder / "node").exists()


def test_plain_http_to_another_machine(site):
    one_sentence(enroll(site, "http://portal.example", "--code", "X"), 29, "--insecure-http")


def test_missing_code(site):
    one_sentence(enroll(site, "http://127.0.0.1:1"), 78, "--code")


def test_full_disk(portal):
    disk = portal.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        code = portal.code()
        result = portal.call("enroll", portal.portal_url, "--code", code, "--state-dir", disk / "node")
        one_sentence(result, 24, "no room", "the code has not been used")
        assert list(disk.iterdir()) == []
        assert enroll(portal, portal.portal_url, "--code", code).returncode == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_agent_without_an_identity_says_how_to_get_one(site):
    result = site.call("run", "--state-dir", site.folder / "node")
    assert result.returncode == 26
    assert "outstation enroll URL --code CODE" in result.stderr
    assert site.call("status", "--state-dir", site.folder / "node").returncode == 26
