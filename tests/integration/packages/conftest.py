"""Wheels made on the spot, and installers that find no others."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.runtime.packages import PackageInstaller


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """The folder that the installers take packages from."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def only_these_wheels(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure the board's pip to know `wheels` and nothing else."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))


MakeWheel = Callable[..., Path]


@pytest.fixture
def make_wheel(wheels: Path) -> MakeWheel:
    """Make a wheel: `make_wheel("acme", "1.0", requires=["other"], files={"acme/part.py": "x = 1"})`."""

    def make(
        name: str,
        version: str,
        *,
        requires: list[str] | None = None,
        extras: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
        folder: Path = wheels,
    ) -> Path:
        info = f"{name}-{version}.dist-info"
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        metadata += [f"Requires-Dist: {each}" for each in requires or ()]
        for extra, requirement in (extras or {}).items():
            metadata += [f"Provides-Extra: {extra}", f"Requires-Dist: {requirement}; extra == '{extra}'"]
        content = dict(files if files is not None else {f"{name}/__init__.py": f"version = {version!r}\n"})
        content[f"{info}/METADATA"] = "\n".join([*metadata, ""])
        content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        record = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in content.items()]
        content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
        wheel = folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in content.items():
                archive.writestr(path, text)
        return wheel

    return make


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "packages"


@pytest.fixture
def said() -> list[str]:
    """What the installer logged."""
    return []


MakeInstaller = Callable[..., PackageInstaller]


@pytest.fixture(params=["uv", "pip"])
def make_installer(request: pytest.FixtureRequest, root: Path, said: list[str]) -> MakeInstaller:
    """Make the installer of a service's process; each test runs with uv and with pip."""

    def make(**options: Any) -> PackageInstaller:
        return PackageInstaller(root, log=said.append, **{"installer": request.param, "timeout_seconds": 60, **options})

    return make


RunPython = Callable[..., Any]


@pytest.fixture
def run_python() -> RunPython:
    """Run code in a fresh process, as a service's is, and return what it left in `answer`."""

    def run(code: str) -> Any:
        program = (
            "import json, sys\nfrom pathlib import Path\nfrom agent.runtime.packages import *\n"
            f"{code}\nprint(json.dumps(answer))"
        )
        process = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    return run


@pytest.fixture
def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in uv's place; `$UV` is the real one."""
    from uv import find_uv_bin

    real = os.fspath(find_uv_bin())

    def write(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "uv").write_text(f"#!/bin/sh\nUV={real}\n{script}\n")
        (folder / "uv").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return write
