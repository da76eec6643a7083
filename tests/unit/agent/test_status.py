from pathlib import Path
from typing import Any

from agent.exitcodes import ExitCode
from agent.paths import Paths
from agent.status import read_status, render_status


def running(**changes: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "running": True,
        "pid": 7,
        "node": {"name": "pi"},
        "portal": {"url": "https://portal.example", "connected": True, "since": 1.8e9, "last_error": ""},
        "sinks": [{"name": "azure", "connected": True, "acknowledged": 3, "parked": 0, "last_error": "old"}],
        "outbox": {"depth": 2, "bytes": 2048, "recovered_from": None},
        "services": [{"id": "pump_py", "version": "0.1", "state": "running", "fault": None}],
        **changes,
    }


def test_healthy_node_fits_on_five_plain_lines_without_colour() -> None:
    lines = render_status(running(), colour=False).splitlines()
    assert lines[0] == "● pi runs (agent 1.0, pid 7)"
    assert lines[2:] == [
        "  sink      ● azure: 3 acknowledged",
        "  outbox    2 waiting, 2 KiB on disk",
        "  service   ● pump_py 0.1: running",
    ]


def test_what_is_wrong_is_said_once_where_it_is_wrong() -> None:
    text = render_status(
        running(
            portal={"url": "https://portal.example", "connected": False, "since": 0, "last_error": "It is gone."},
            sinks=[{"name": "mqtt", "connected": False, "acknowledged": 0, "parked": 4, "last_error": "refused"}],
            outbox={"depth": 0, "bytes": 0, "recovered_from": "/var/lib/outstation/outbox.db.damaged-1"},
            services=[{"id": "pump_py", "version": "0.1", "state": "failed", "fault": "Traceback\nValueError: dry"}],
        ),
        colour=False,
    )
    assert "  portal    ▲ It is gone." in text
    assert "mqtt: 0 acknowledged, 4 refused for ever and parked; refused" in text
    assert "a damaged file was set aside as /var/lib/outstation/outbox.db.damaged-1" in text
    assert "✖ pump_py 0.1: failed, ValueError: dry" in text


def test_colour_is_there_when_asked_for_and_shape_says_the_same_without() -> None:
    assert "\x1b[32m●\x1b[0m pi runs" in render_status(running(), colour=True)
    assert "\x1b" not in render_status(running(), colour=False)


def test_node_without_services_says_where_to_get_one() -> None:
    assert "assign one to this node in the portal" in render_status(running(services=[]), colour=False)


def test_machine_that_is_not_enrolled_says_how(tmp_path: Path) -> None:
    status, code = read_status(Paths(state=tmp_path, runtime=tmp_path / "run"))
    assert code is ExitCode.NOT_ENROLLED
    assert "outstation enroll URL --code CODE" in render_status(status, colour=False)
