"""SystemMetrics' measurements and its properties."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

library: Any = importlib.import_module("services.library.SystemMetrics")


@pytest.fixture
async def service() -> Any:
    return library.SystemMetrics("systemmetrics_py", None, {"staticConfig": []})


def test_throttle_flags_are_named_by_now_and_since_boot() -> None:
    assert library.throttle_flags(0x50005) == {
        "now": ["under_voltage", "throttled"],
        "since_boot": ["under_voltage", "throttled"],
    }
    assert library.throttle_flags(0x80000) == {"now": [], "since_boot": ["soft_temperature_limit"]}


def test_the_boards_own_sensor_comes_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = {"nvme": [SimpleNamespace(current=30.0)], "cpu_thermal": [SimpleNamespace(current=48.34)]}
    monkeypatch.setattr(library.psutil, "sensors_temperatures", lambda: sensors)

    assert library.temperature() == 48.3


async def test_flags_come_from_the_kernel_where_it_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "get_throttled"
    file.write_text("50000\n")
    monkeypatch.setattr(library, "THROTTLE_FILE", file)

    assert await library.throttled() == {"now": [], "since_boot": ["under_voltage", "throttled"]}


async def test_flags_come_from_vcgencmd_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "vcgencmd"
    command.write_text("#!/bin/sh\necho throttled=0x1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    assert await library.throttled() == {"now": ["under_voltage"], "since_boot": []}


async def test_a_machine_without_such_flags_says_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert await library.throttled() is None


async def test_a_measurement_holds_every_documented_value(service: Any) -> None:
    measured = await service.measure("/")

    documented = {line.split('"')[1] for line in library.__doc__.replace(", ", ",\n").splitlines() if '":' in line}
    assert documented - {"throttled", "now", "since_boot"} <= set(measured)
    assert 0 < measured["memory_percent"] < 100
    assert measured["disk_free"] > 0


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({"interval": "often"}, "The property 'interval' is 'often'; it must be a number of seconds."),
        ({"interval": 0.5}, "The property 'interval' is 0.5 s; it must be from 1 to 86400 s."),
        ({"path": "/nowhere"}, "The property 'path' is '/nowhere'; there is no such folder on this node."),
    ],
)
async def test_wrong_values_are_one_clear_sentence(service: Any, properties: dict[str, Any], sentence: str) -> None:
    service.config = {"staticConfig": [{"id": id, "value": value} for id, value in properties.items()]}

    with pytest.raises(ValueError) as error:
        service.read_settings()

    assert str(error.value) == sentence
