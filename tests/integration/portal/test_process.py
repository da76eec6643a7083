"""The installed command as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from agent.exitcodes import ExitCode
from agent.hub.protocol import HANDSHAKE_REQUEST

PATIENCE_SECONDS = 60
STOP_SECONDS = 12


@asynccontextmanager
async def portal_process(
    tmp_path: Path, *arguments: str, **environment: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        (tmp_path / "notify").unlink(missing_ok=True)
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.setblocking(False)
        ready = tmp_path / "ready.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent.cli", "portal", "run", "--port", "0", "--ready-file", str(ready)),
            *("--data", str(tmp_path / "data"), *arguments),
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                message = await asyncio.get_running_loop().sock_recv(supervisor, 4096)
            assert message.startswith(b"READY=1")
            yield process, json.loads(ready.read_text())
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def output_of(*arguments: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent.cli", "portal", *arguments),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_portal_starts_serves_pages_and_stops_within_seconds_with_open_streams(tmp_path: Path) -> None:
    async with portal_process(tmp_path) as (process, ready):
        url = ready["url"]
        token = ready["setup_url"].partition("token=")[2]
        async with aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            form = {"token": token, "name": "alice", "password": "a long sentence"}
            async with session.post("/api/setup", json=form) as made:
                assert made.status == 201
            async with session.get("/") as page:
                assert page.status == 200
                assert "script-src 'self'" in page.headers["Content-Security-Policy"]
            async with session.post("/nodeHub/negotiate") as answer:
                connection_id = (await answer.json())["connectionId"]
            async with (
                session.get("/api/console/stream") as stream,
                session.ws_connect(f"/nodeHub?id={connection_id}") as node,
            ):
                await stream.content.readline()
                await node.send_str(HANDSHAKE_REQUEST)
                await node.receive()
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(STOP_SECONDS):
                    assert '"type":7' in (await node.receive()).data
                    await stream.content.read()
                    output, _ = await process.communicate()
    assert process.returncode == ExitCode.OK
    assert url in output.decode()
    assert "Traceback" not in output.decode()
    assert "a long sentence" not in output.decode()


async def test_self_signed_portal_prints_its_fingerprint_and_keeps_its_certificate(tmp_path: Path) -> None:
    async with portal_process(tmp_path, "--self-signed") as (_, first), aiohttp.ClientSession() as session:
        pinned = aiohttp.Fingerprint(bytes.fromhex(first["fingerprint"]))
        async with session.get(f"{first['url']}/api/health", ssl=pinned) as answer:
            assert (await answer.json())["status"] == "ok"
    async with portal_process(tmp_path, PORTAL_SELF_SIGNED="1") as (_, second):
        assert second["fingerprint"] == first["fingerprint"]
    assert (tmp_path / "data" / "certificate.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data" / "secret.key").stat().st_mode & 0o777 == 0o600


async def test_database_is_the_portals_alone_also_in_a_folder_of_everybody(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    async with portal_process(tmp_path):
        files = sorted((tmp_path / "data").glob("portal.db*"))
        assert len(files) == 3
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


async def test_killed_portal_starts_again_with_everything(tmp_path: Path) -> None:
    async with portal_process(tmp_path) as (process, ready):
        token = ready["setup_url"].partition("token=")[2]
        async with aiohttp.ClientSession(ready["url"]) as session:
            form = {"token": token, "name": "alice", "password": "a long sentence"}
            async with session.post("/api/setup", json=form) as made:
                assert made.status == 201
        process.kill()
        await process.wait()
    async with portal_process(tmp_path) as (_, ready):
        assert ready["setup_url"] is None


async def test_setup_link_is_printed_anew_for_a_portal_without_an_owner(tmp_path: Path) -> None:
    status, output = await output_of("setup-link", "--data", str(tmp_path), "--public-url", "https://p.example")
    assert status == ExitCode.OK
    assert "https://p.example/setup?token=" in output


async def test_wrong_settings_name_the_key_and_exit_with_their_status(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    cases = {
        "--certificate": ("--certificate", str(tmp_path / "none.pem")),
        "--public-url": ("--public-url", "portal.example"),
        "--database-url": ("--database-url", "mysql://x"),
        "--port": ("--port", "70000"),
    }
    for key, arguments in cases.items():
        status, output = await output_of("run", "--data", data, *arguments)
        assert status == ExitCode.CONFIG_INVALID, output
        assert key in output
        assert "Traceback" not in output


async def test_data_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, output = await output_of("run", "--port", "0", "--data", str(tmp_path / "file" / "data"))
    assert status == ExitCode.STORAGE_FAILED
    assert "Traceback" not in output


async def test_database_that_is_none_is_one_sentence_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "portal.db").write_bytes(b"this is no database" * 100)
    status, output = await output_of("run", "--port", "0", "--data", str(tmp_path))
    assert status == ExitCode.STORAGE_FAILED
    assert "Traceback" not in output
    assert (tmp_path / "portal.db").read_bytes() == b"this is no database" * 100


async def test_key_file_of_another_portal_is_noticed_at_start(tmp_path: Path) -> None:
    await output_of("setup-link", "--data", str(tmp_path))
    (tmp_path / "secret.key").unlink()
    status, output = await output_of("run", "--port", "0", "--data", str(tmp_path))
    assert status == ExitCode.CONFIG_INVALID
    assert "secret.key" in output
    assert "Traceback" not in output


async def test_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, output = await output_of("run", "--port", port, "--data", str(tmp_path))
    assert status == ExitCode.CONFIG_INVALID
    assert f"127.0.0.1:{port}" in output
