"""What the operator of a node set: one TOML file, environment twins, flags; checked as a whole at start.

```toml
log_level = "info"               # debug, info, warning, error
gpio = "auto"                    # auto, real, simulated

[outbox]
durability = "crash"             # crash: survives kill -9 of anything; power: survives a power cut
max_bytes = 268435456
max_age_days = 30.0
keep_without_hub = true          # false: what waits for an IoT Hub goes when the portal takes the hub away

[sinks.azure]                    # usually not needed: the portal hands the connection string to the node
connection_string_file = "/etc/outstation/iothub"   # or hostname, device_id, certificate_file and key_file for X.509

[sinks.mqtt]
host = "broker.example"
```
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from agent.errors import ConfigError
from agent.paths import Paths, default_runtime_directory, default_state_directory

DEFAULT_CONFIG_FILE = Path("/etc/outstation/agent.toml")
LOG_LEVELS = ("debug", "info", "warning", "error")
GPIO_MODES = ("auto", "real", "simulated")
DURABILITIES = ("crash", "power")


class OutboxConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How much is kept, and what it survives."""

    durability: Literal["crash", "power"] = "crash"
    max_bytes: Annotated[int, msgspec.Meta(ge=1_048_576)] = 268_435_456
    max_age_days: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    keep_without_hub: bool = True
    """Whether messages that wait for an IoT Hub go on waiting when the portal takes the hub away."""


class AzureSinkConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The IoT Hub that this node sends to, when the portal is not to say it."""

    connection_string_file: str = ""
    hostname: str = ""
    device_id: str = ""
    certificate_file: str = ""
    key_file: str = ""
    certificate_authority_file: str = ""


class MqttSinkConfig(msgspec.Struct, forbid_unknown_fields=True):
    """A broker that gets every message too."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8883
    tls: bool = True
    topic: str = "outstation/{node}/{service}"
    protocol: Literal["3.1.1", "5"] = "5"
    username: str = ""
    password_file: str = ""
    certificate_authority_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


class SinksConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Where messages go."""

    azure: AzureSinkConfig | None = None
    mqtt: MqttSinkConfig | None = None


class AgentConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    gpio: Literal["auto", "real", "simulated"] = "auto"
    stop_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    outbox: OutboxConfig = msgspec.field(default_factory=OutboxConfig)
    sinks: SinksConfig = msgspec.field(default_factory=SinksConfig)


def load_config(
    file: Path | None = None,
    *,
    log_level: str | None = None,
    gpio: str | None = None,
    durability: str | None = None,
) -> AgentConfig:
    """Read and check the configuration; arguments that are not None replace what the file says.

    `file` None means `/etc/outstation/agent.toml` where it exists, else the defaults.
    Raises ConfigError naming the file and the key.
    """
    chosen = file if file is not None else DEFAULT_CONFIG_FILE
    raw: dict[str, object] = {}
    if file is not None or chosen.exists():
        try:
            raw = tomllib.loads(chosen.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"The configuration file {chosen} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"The configuration file {chosen} is not valid TOML: {error}.") from error
    for key, value in (("log_level", log_level), ("gpio", gpio)):
        if value is not None:
            raw[key] = value
    if durability is not None:
        outbox = raw.setdefault("outbox", {})
        if isinstance(outbox, dict):
            outbox["durability"] = durability
    try:
        config = msgspec.convert(raw, AgentConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"In {chosen}: {_readable(str(error))}.") from error
    _check_sinks(chosen, config.sinks)
    return config


def _readable(text: str) -> str:
    # msgspec says "… - at `$.outbox.max_bytes`"; people know the key as outbox.max_bytes.
    return text.replace("`$.", "`").replace(" - at ", ", at key ")


def _check_sinks(file: Path, sinks: SinksConfig) -> None:
    azure = sinks.azure
    if azure is not None:
        x509 = (azure.hostname, azure.device_id, azure.certificate_file, azure.key_file)
        if azure.connection_string_file and any(x509):
            raise ConfigError(
                f"In {file}: sinks.azure has both connection_string_file and X.509 keys; keep one of the two."
            )
        if not azure.connection_string_file and not all(x509):
            raise ConfigError(
                f"In {file}: sinks.azure needs connection_string_file, or all of hostname, device_id, "
                "certificate_file and key_file."
            )
        for key in ("connection_string_file", "certificate_file", "key_file", "certificate_authority_file"):
            _check_readable(file, f"sinks.azure.{key}", getattr(azure, key))
    if sinks.mqtt is not None:
        for key in ("password_file", "certificate_authority_file", "certificate_file", "key_file"):
            _check_readable(file, f"sinks.mqtt.{key}", getattr(sinks.mqtt, key))


def _check_readable(file: Path, key: str, value: str) -> None:
    if value and not os.access(value, os.R_OK):
        raise ConfigError(f"In {file}: {key} names {value}, which cannot be read.")


def make_paths(state_dir: str | Path | None, runtime_dir: str | Path | None) -> Paths:
    """The state and runtime directories: as given, else systemd's, else the defaults."""
    state = Path(state_dir).absolute() if state_dir else default_state_directory()
    runtime = Path(runtime_dir).absolute() if runtime_dir else default_runtime_directory(state)
    return Paths(state=state, runtime=runtime)
