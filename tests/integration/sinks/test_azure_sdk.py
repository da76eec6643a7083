"""Azure's SDK as the sink's process imports it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(program: str, *, path: Path | None = None) -> str:
    environment = os.environ | ({} if path is None else {"PYTHONPATH": str(path)})
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_sdk_comes_without_the_http_client_that_nothing_here_uses() -> None:
    assert run("import sys, agent.outbox.sinks.azure_process; print('urllib3' in sys.modules)") == "False"


def test_sdk_that_wants_more_of_the_http_client_gets_it(tmp_path: Path) -> None:
    sdk = tmp_path / "azure" / "iot" / "device"
    (sdk / "aio").mkdir(parents=True)
    (sdk / "__init__.py").write_text(
        "import requests\nfound = requests.Session\nX509 = Message = MethodRequest = MethodResponse = object\n"
    )
    (sdk / "aio" / "__init__.py").write_text("IoTHubDeviceClient = object\n")
    program = (
        "import agent.outbox.sinks.azure_sdk, azure.iot.device, requests;"
        "print(azure.iot.device.__file__, azure.iot.device.found is requests.Session, requests.__name__)"
    )
    assert run(program, path=tmp_path) == f"{sdk / '__init__.py'} True requests"
