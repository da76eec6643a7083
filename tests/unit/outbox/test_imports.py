"""What a node does not use, it does not pay for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LOADED = """
import sys
{imports}
heavy = {{"azure", "paho", "cryptography", "requests", "aiohttp"}}
print(*sorted(heavy & {{name.split(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import agent.outbox.store",
        "import agent.outbox.sinks.azure, agent.outbox.sinks.mqtt, agent.outbox.sinks.portal",
        "from agent.outbox.limits import check_size",
    ],
)
def test_outbox_and_sinks_load_no_client_library(imports: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(imports=imports)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == ""
