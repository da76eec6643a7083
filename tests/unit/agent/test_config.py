from pathlib import Path

import pytest

from agent.config import load_config, make_paths
from agent.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "agent.toml"
    file.write_text(text, "utf-8")
    return file


def test_defaults_need_no_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ""))
    assert (config.log_level, config.gpio, config.outbox.durability) == ("info", "auto", "crash")


def test_arguments_replace_what_the_file_says(tmp_path: Path) -> None:
    file = write(tmp_path, 'log_level = "error"\n[outbox]\nmax_bytes = 2097152\n')
    config = load_config(file, log_level="debug", durability="power")
    assert (config.log_level, config.outbox.durability, config.outbox.max_bytes) == ("debug", "power", 2097152)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('gpio = "maybe"', "key `gpio`"),
        ("[outbox]\nmax_bytes = 3", "key `outbox.max_bytes`"),
        ("colour = 1", "unknown field `colour`"),
        ("[outbox", "is not valid TOML"),
        ('[sinks.azure]\nhostname = "hub"', "sinks.azure needs connection_string_file, or all of"),
        ('[sinks.azure]\nconnection_string_file = "/nowhere"', "sinks.azure.connection_string_file names /nowhere"),
        ('[sinks.mqtt]\nhost = "broker"\nkey_file = "/nowhere"', "sinks.mqtt.key_file names /nowhere"),
        ("[sinks.mqtt]\nport = 1", "missing required field `host`"),
    ],
)
def test_bad_setting_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml")


def test_systemd_says_where_state_and_sockets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/outstation")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/outstation")
    paths = make_paths(None, None)
    assert str(paths.identity) == "/var/lib/outstation/identity.json"
    assert str(paths.control_socket) == "/run/outstation/agent.sock"


def test_flags_beat_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/outstation")
    paths = make_paths(tmp_path, None)
    assert paths.state == tmp_path
    assert paths.runtime == tmp_path / "run"
