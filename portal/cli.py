"""`outstation portal`: run the portal and look after it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from agent import __version__
from agent.errors import ConfigError
from agent.exitcodes import ExitCode
from agent.files import write_atomically
from agent.flags import add_flag
from agent.logs import LineHandler, LineWriter
from agent.system.notify import notify
from portal.app import create_app, portal_of_app
from portal.portal import Portal
from portal.server import PortalServer, listen, port_of
from portal.settings import Settings
from portal.tls import certificate_for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `run` and `setup-link`."""
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    run_parser = commands.add_parser("run", help="run the portal")
    _add_data(run_parser)
    add_flag(run_parser, "--host", env="PORTAL_HOST", default="127.0.0.1", help="Address to listen on.")
    add_flag(
        run_parser,
        "--port",
        env="PORTAL_PORT",
        default=8080,
        type=int,
        help="TCP port; 0 takes a free one.",
    )
    add_flag(run_parser, "--certificate", env="PORTAL_CERTIFICATE", type=Path, help="PEM file of the certificate.")
    add_flag(run_parser, "--key", env="PORTAL_KEY", type=Path, help="PEM file of the certificate's private key.")
    add_flag(
        run_parser,
        "--self-signed",
        env="PORTAL_SELF_SIGNED",
        switch=True,
        help="Make a certificate once, keep it in the data folder, and print its fingerprint for nodes to pin.",
    )
    add_flag(
        run_parser,
        "--public-url",
        env="PORTAL_PUBLIC_URL",
        default="",
        help="How browsers and nodes reach the portal, when that is not its own host and port.",
    )
    add_flag(
        run_parser,
        "--ready-file",
        env="PORTAL_READY_FILE",
        type=Path,
        help="Written with url, port, fingerprint and setup_url (JSON) once the portal listens.",
    )
    add_flag(
        run_parser,
        "--retention-days",
        env="PORTAL_RETENTION_DAYS",
        default=90,
        type=int,
        help="For how many days timelines, faults and tracking records are kept; of each, 10,000 a node at most.",
    )
    run_parser.set_defaults(portal_run=_run)
    link_parser = commands.add_parser("setup-link", help="print a new one-time link that creates the first owner")
    _add_data(link_parser)
    add_flag(
        link_parser,
        "--public-url",
        env="PORTAL_PUBLIC_URL",
        default="http://127.0.0.1:8080",
        help="How browsers reach the portal.",
    )
    link_parser.set_defaults(portal_run=_print_setup_link)


def run(arguments: argparse.Namespace) -> int:
    """Run what was asked for; the exit status."""
    chosen: Callable[[argparse.Namespace], int] = arguments.portal_run
    return chosen(arguments)


def _add_data(parser: argparse.ArgumentParser) -> None:
    add_flag(
        parser,
        "--data",
        env="PORTAL_DATA",
        type=Path,
        help="Folder of the database, keys and certificate. "
        "Default: systemd's, /var/lib/outstation-portal for root, else ~/.local/share/outstation-portal.",
    )
    add_flag(
        parser,
        "--database-url",
        env="PORTAL_DATABASE_URL",
        default="",
        secret=True,
        help="sqlite+aiosqlite:///… or postgresql+asyncpg://…. Default: portal.db in the data folder.",
    )


def _run(arguments: argparse.Namespace) -> int:
    settings = Settings(
        data=_data(arguments),
        host=arguments.host,
        port=arguments.port,
        database_url=arguments.database_url or "",
        certificate=arguments.certificate,
        key=arguments.key,
        self_signed=arguments.self_signed,
        public_url=arguments.public_url or "",
        ready_file=arguments.ready_file,
        retention_days=arguments.retention_days,
    )
    _set_up_logging()
    taken = listen(settings)
    try:
        certificate = certificate_for(settings)
        app = create_app(settings, fingerprint=certificate.fingerprint if certificate else None)
        portal = portal_of_app(app)
        portal.listening_on(port_of(taken))
        server = PortalServer(app, certificate, on_ready=lambda: _tell_ready(portal))
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_serve(portal, server, taken))
    finally:
        taken.close()
    return ExitCode.OK


async def _serve(portal: Portal, server: PortalServer, taken: socket.socket) -> None:
    # Before the server does, so that what is wrong is one sentence and an exit status, not a server's traceback.
    await portal.start()
    await server.serve(sockets=[taken])
    notify("STOPPING=1")


def _tell_ready(portal: Portal) -> None:
    _say(f"Outstation portal {__version__} is ready at {portal.url}")
    if portal.fingerprint is not None:
        _say(f"SHA-256 fingerprint of its certificate: {portal.fingerprint}")
    if portal.setup_url is not None:
        _say(f"It has no owner yet. Open this link once to become it: {portal.setup_url}")
    if portal.settings.ready_file is not None:
        document = {
            "url": portal.url,
            "port": portal.settings.port,
            "fingerprint": portal.fingerprint,
            "setup_url": portal.setup_url,
        }
        write_atomically(portal.settings.ready_file, json.dumps(document).encode() + b"\n")
    notify(f"READY=1\nSTATUS=Listening at {portal.url}")


def _print_setup_link(arguments: argparse.Namespace) -> int:
    settings = Settings(
        data=_data(arguments), database_url=arguments.database_url or "", public_url=arguments.public_url or ""
    )
    _set_up_logging()
    return asyncio.run(_new_setup_link(Portal(settings)))


async def _new_setup_link(portal: Portal) -> int:
    try:
        await portal.prepare()
        token = await portal.accounts.new_setup_token()
    finally:
        await portal.database.close()
    if token is None:
        raise ConfigError("The portal has an owner already; sign in, or have the owner invite you.")
    _say(f"{portal.url}/setup?token={token}")
    return ExitCode.OK


def _data(arguments: argparse.Namespace) -> Path:
    data: Path | None = arguments.data
    if data is not None:
        return data
    if systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/outstation-portal")
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "outstation-portal"


def _set_up_logging() -> None:
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(LineHandler(LineWriter()))
    # The server's own remarks about its start and end say nothing that we do not say.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is the command line
