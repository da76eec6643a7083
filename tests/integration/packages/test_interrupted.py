"""Installs that are killed, slow, or going on twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.runtime.packages import PackageInstaller, PackageInstallError, environment_key
from agent.runtime.requirements import parse_requirements

MakeWheel = Callable[..., Path]
FakeUv = Callable[[str], None]

ENSURE = """
import sys; from pathlib import Path
from agent.runtime.packages import PackageInstaller
installer = PackageInstaller(Path(sys.argv[1]), log=lambda text: print(text, flush=True))
print(installer.ensure(sys.argv[2], ["acme"]).name, flush=True)
"""


async def start_service(root: Path, service: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENSURE, str(root), service, stdout=asyncio.subprocess.PIPE
    )


def installer(root: Path, said: list[str], **options: float) -> PackageInstaller:
    return PackageInstaller(root, log=said.append, installer="uv", **options)  # type: ignore[arg-type]


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("[!.]*"))


def test_an_installer_that_is_killed_midway_leaves_nothing_that_is_seen(
    make_wheel: MakeWheel, fake_uv: FakeUv, root: Path, said: list[str]
) -> None:
    make_wheel("acme", "1.0")
    fake_uv('"$UV" "$@" >/dev/null 2>&1; kill -KILL $$')

    with pytest.raises(PackageInstallError, match="the installer was ended by SIGKILL"):
        installer(root, said).ensure("one_py", ["acme"])

    assert visible(root) == []
    fake_uv('exec "$UV" "$@"')
    folder = installer(root, said).ensure("one_py", ["acme"])
    assert folder is not None
    assert (folder / "acme/__init__.py").read_text() == "version = '1.0'\n"


async def test_a_service_that_is_killed_while_it_installs_leaves_nothing_that_is_seen(
    make_wheel: MakeWheel, fake_uv: FakeUv, root: Path, said: list[str], tmp_path: Path
) -> None:
    make_wheel("acme", "1.0")
    reached, pid = tmp_path / "reached", tmp_path / "pid"
    os.mkfifo(reached)
    fake_uv(f'echo $$ > {pid}; "$UV" "$@" >/dev/null 2>&1; echo done > {reached}; exec sleep 600')
    service = await start_service(root, "one_py")
    assert await asyncio.wait_for(asyncio.to_thread(reached.read_text), 30) == "done\n"

    service.kill()
    await service.communicate()
    os.kill(int(pid.read_text()), signal.SIGKILL)

    assert visible(root) == []
    assert len(list(root.glob(".staging-*"))) == 1
    fake_uv('exec "$UV" "$@"')
    folder = await asyncio.to_thread(installer(root, said).ensure, "one_py", ["acme"])
    assert folder is not None
    assert visible(root) == [folder.name]
    assert list(root.glob(".staging-*")) == []


async def test_two_services_that_need_the_same_at_once_install_it_once(make_wheel: MakeWheel, root: Path) -> None:
    make_wheel("acme", "1.0")

    services = [await start_service(root, f"{number}_py") for number in range(3)]
    outputs = [(await asyncio.wait_for(service.communicate(), 60))[0].decode() for service in services]

    key = environment_key(parse_requirements(["acme"]))
    assert [output.splitlines()[-1] for output in outputs] == [key] * 3
    assert "".join(outputs).count("Installing acme") == 1


def test_an_install_that_takes_too_long_is_ended(fake_uv: FakeUv, root: Path, said: list[str]) -> None:
    fake_uv("echo Downloading acme; exec sleep 600")

    with pytest.raises(PackageInstallError, match=r"\(acme\) could not be installed: it took longer than 1 s"):
        installer(root, said, timeout_seconds=1).ensure("one_py", ["acme"])

    assert said[-1] == "Downloading acme"
    assert visible(root) == []


def test_a_full_disk_leaves_nothing_that_is_seen(
    make_wheel: MakeWheel, fake_uv: FakeUv, root: Path, said: list[str]
) -> None:
    make_wheel("acme", "1.0")
    fake_uv("echo 'error: Failed to write to the cache'; echo '  cause: No space left on device (os error 28)'; exit 2")

    with pytest.raises(PackageInstallError, match="No space left on device"):
        installer(root, said).ensure("one_py", ["acme"])

    assert visible(root) == []
