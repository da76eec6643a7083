"""The `outstation` command."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent import __version__
from agent.config import DURABILITIES, GPIO_MODES, LOG_LEVELS, AgentConfig, load_config, make_paths
from agent.errors import ConfigError, MissingExtraError, OutstationError
from agent.exitcodes import ExitCode
from agent.flags import add_flag

# Parts that a node does not need to have installed: found by name when asked for, so that the agent imports none.
_PARTS = {
    "portal": ("portal.cli", "portal", "run the portal and look after it"),
    "iothub": ("emulator.cli", "emulator", "run a local Azure IoT Hub for demo, tests and development"),
    "demo": ("emulator.demo", "demo", "show it all on this machine: portal, hub, and a node with simulated pins"),
    "pins": ("agent.system.pins_cli", "gpio", "look at and press the simulated pins of a running agent"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal of another encoding shows question marks for our symbols, and not a traceback.
        sys.stdout.reconfigure(errors="replace")
    try:
        parser = _make_parser(arguments[0] if arguments else "")
        parsed = parser.parse_args(arguments)
        run: Callable[[argparse.Namespace], int] | None = getattr(parsed, "run", None)
        if run is None:
            parser.print_help()
            return ExitCode.USAGE
        return run(parsed)
    except OutstationError as error:
        print(f"outstation: {error} [{error.code}]", file=sys.stderr)  # noqa: T201 - this is the command line
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does. What is buffered still must not fail at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _make_parser(wanted: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="outstation",
        description="Run Python services on a Raspberry Pi and stream their readings to the cloud, with nothing lost.",
        epilog="Every flag has an environment twin, named in its help. A flag beats its twin.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    enroll = commands.add_parser("enroll", help="make this machine a node of a portal")
    enroll.add_argument("url", metavar="URL", help="the portal's address, https://…")
    add_flag(enroll, "--code", env="OUTSTATION_CODE", help="Verification code from the portal's Nodes page.")
    add_flag(enroll, "--name", env="OUTSTATION_NAME", help="Name of the node.", default="")
    add_flag(
        enroll,
        "--fingerprint",
        env="OUTSTATION_FINGERPRINT",
        help="SHA-256 of the portal's certificate, to trust just that one.",
        default="",
    )
    add_flag(
        enroll,
        "--ca-file",
        env="OUTSTATION_CA_FILE",
        help="PEM file of the authority that signed the portal's certificate.",
        default="",
    )
    add_flag(
        enroll,
        "--insecure-http",
        env="OUTSTATION_INSECURE_HTTP",
        help="Allow plain HTTP to an address that is not this machine.",
        switch=True,
    )
    _add_directories(enroll)
    enroll.set_defaults(run=_enroll)

    run = commands.add_parser("run", help="run the agent")
    _add_directories(run)
    _add_config(run)
    run.set_defaults(run=_run)

    status = commands.add_parser("status", help="show what the agent does")
    add_flag(status, "--json", env="OUTSTATION_JSON", help="Print JSON.", switch=True)
    _add_directories(status)
    status.set_defaults(run=_status)

    check = commands.add_parser("check-config", help="check configuration and state without starting anything")
    _add_directories(check)
    _add_config(check)
    check.set_defaults(run=_check_config)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)

    for name, (module, extra, text) in _PARTS.items():
        part = commands.add_parser(name, help=text)
        if name == wanted:
            _load_part(module, extra, name).add_arguments(part)
            part.set_defaults(run=_load_part(module, extra, name).run)
    return parser


def _add_directories(parser: argparse.ArgumentParser) -> None:
    add_flag(
        parser,
        "--state-dir",
        env="OUTSTATION_STATE_DIR",
        help="Where the node keeps what must survive: identity, deployment, outbox. "
        "Default: systemd's, /var/lib/outstation for root, else ~/.local/state/outstation.",
    )
    add_flag(
        parser,
        "--runtime-dir",
        env="OUTSTATION_RUNTIME_DIR",
        help="Where sockets are. Default: systemd's, else run/ below the state directory.",
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    add_flag(
        parser,
        "--config",
        env="OUTSTATION_CONFIG",
        help="Configuration file. Default: /etc/outstation/agent.toml where it exists.",
    )
    add_flag(parser, "--log-level", env="OUTSTATION_LOG_LEVEL", help="How much is logged.", choices=LOG_LEVELS)
    add_flag(
        parser,
        "--gpio",
        env="OUTSTATION_GPIO",
        help="Real pins, simulated ones, or whatever there is.",
        choices=GPIO_MODES,
    )
    add_flag(
        parser,
        "--durability",
        env="OUTSTATION_DURABILITY",
        help="What the outbox survives: kill -9 of anything (crash), or a power cut too (power).",
        choices=DURABILITIES,
    )


def _load_part(module: str, extra: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or str(error)
        raise MissingExtraError(
            f"`outstation {name}` needs {missing}, which is not installed: pip install 'outstation[{extra}]'."
        ) from error


def _load_config(arguments: argparse.Namespace) -> AgentConfig:
    return load_config(
        Path(arguments.config) if arguments.config else None,
        log_level=arguments.log_level,
        gpio=arguments.gpio,
        durability=arguments.durability,
    )


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is the command line


def _enroll(arguments: argparse.Namespace) -> int:
    from agent.hub.enrolment import enroll

    if not arguments.code:
        raise ConfigError("A verification code is needed: get one in the portal under Nodes, then give it with --code.")
    authority = ""
    if arguments.ca_file:
        try:
            authority = Path(arguments.ca_file).read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The authority's file {arguments.ca_file} cannot be read: {error}.") from error
    paths = make_paths(arguments.state_dir, arguments.runtime_dir)
    identity = asyncio.run(
        enroll(
            paths,
            arguments.url,
            code=arguments.code,
            name=arguments.name,
            fingerprint=arguments.fingerprint,
            certificate_authority=authority,
            insecure_http=arguments.insecure_http,
        )
    )
    _say(f"This machine is now the node {identity.node_name} of {identity.portal_url}.")
    _say("Where systemd looks after the agent it starts by itself now; elsewhere start it with: outstation run")
    return ExitCode.OK


def _run(arguments: argparse.Namespace) -> int:
    from agent.system.process_one import leave_process_one

    # Before the rest is imported, so that what stays behind is small.
    leave_process_one()
    from agent.app import run

    return run(_load_config(arguments), make_paths(arguments.state_dir, arguments.runtime_dir))


def _status(arguments: argparse.Namespace) -> int:
    from agent.status import read_status, render_status

    paths = make_paths(arguments.state_dir, arguments.runtime_dir)
    status, code = read_status(paths)
    if arguments.json:
        _say(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        _say(render_status(status, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    return code


def _check_config(arguments: argparse.Namespace) -> int:
    from agent.identity import load_identity
    from agent.outbox.sinks.runner import check_sinks

    config = _load_config(arguments)
    check_sinks(config.sinks)
    paths = make_paths(arguments.state_dir, arguments.runtime_dir)
    _say(
        f"Configuration is valid: log level {config.log_level}, GPIO {config.gpio}, "
        f"outbox {config.outbox.durability}-safe up to {config.outbox.max_bytes // 1024 // 1024} MiB."
    )
    _say(f"State directory: {paths.state}")
    identity = load_identity(paths)
    _say(f"Enrolled as {identity.node_name} at {identity.portal_url}.")
    return ExitCode.OK


def _version(_: argparse.Namespace) -> int:
    _say(f"outstation {__version__}")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
