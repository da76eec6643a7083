"""The board's own pip configuration, read as pip documents it, so that uv can be told the same."""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s'\"`]+@")


def without_credentials(text: str) -> str:
    """`text` with the user and password of every URL in it replaced by `***`."""
    return _CREDENTIALS.sub("***@", text)


class PipSettings:
    """pip's settings for `pip install`: its configuration files, then `PIP_…` variables, later ones winning.

    Args:
        environ: the environment, default that of this process.
        files: the configuration files, default those that pip reads, in its order.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, files: list[Path] | None = None) -> None:
        environ = os.environ if environ is None else environ
        # A later file's [global] does not beat an earlier one's [install]: sections are joined first, as pip does.
        sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
        for file in configuration_files(environ) if files is None else files:
            _read(file, sections)
        self._values = sections["global"] | sections["install"]
        for name, value in environ.items():
            if name.startswith("PIP_") and value:
                self._values[_key(name.removeprefix("PIP_"))] = value

    def get(self, key: str) -> str:
        """A setting by the name of pip's long option (`index-url`), empty when it is not set."""
        return self._values.get(key, "")

    def get_list(self, key: str) -> list[str]:
        """A setting that may hold several values."""
        return self.get(key).split()

    def get_boolean(self, key: str) -> bool:
        """A switch."""
        return self.get(key).strip().lower() in ("1", "true", "yes", "on")

    def for_uv(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The same settings as uv's environment variables; those that `environ` sets already are left alone."""
        proxy = self.get("proxy")
        wanted = {
            "UV_DEFAULT_INDEX": self.get("index-url"),
            "UV_INDEX": " ".join(self.get_list("extra-index-url")),
            "UV_FIND_LINKS": ",".join(self.get_list("find-links")),
            "UV_INSECURE_HOST": " ".join(self.get_list("trusted-host")),
            "UV_CONSTRAINT": " ".join(self.get_list("constraint")),
            "UV_HTTP_TIMEOUT": self.get("timeout") or self.get("default-timeout"),
            "SSL_CERT_FILE": self.get("cert"),
            "SSL_CLIENT_CERT": self.get("client-cert"),
            "HTTPS_PROXY": proxy,
            "HTTP_PROXY": proxy,
            # pip takes the best version of all indexes; uv by itself stops at the first index that has the package.
            "UV_INDEX_STRATEGY": "unsafe-best-match" if self.get("extra-index-url") else "",
        }
        taken = {name.upper() for name in environ}
        return {name: value for name, value in wanted.items() if value and name not in taken}

    def uv_arguments(self) -> list[str]:
        """The settings that uv takes as arguments alone."""
        arguments = ["--no-index"] if self.get_boolean("no-index") else []
        if self.get_boolean("pre"):
            arguments += ["--prerelease", "allow"]
        for key in ("only-binary", "no-binary"):
            for package in self.get(key).replace(",", " ").split():
                arguments += [f"--{key}", package]
        return arguments


def configuration_files(environ: Mapping[str, str]) -> list[Path]:
    """Where pip's configuration is, in the order in which it counts: global, user, site, `PIP_CONFIG_FILE`."""
    chosen = environ.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return []
    home = Path(environ.get("HOME") or Path.home())
    system = [
        Path(folder) / "pip/pip.conf" for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if folder
    ]
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [*system, Path("/etc/pip.conf")]
    if not (chosen and Path(chosen).exists()):
        # pip reads the user's own files only where no file was chosen.
        files += [home / ".pip/pip.conf", user / "pip/pip.conf"]
    files.append(Path(sys.prefix) / "pip.conf")
    return [*files, Path(chosen)] if chosen else files


def _key(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")


def _read(file: Path, sections: dict[str, dict[str, str]]) -> None:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return  # pip itself says what is wrong with its file; without it the defaults hold.
    for section, values in sections.items():
        if parser.has_section(section):
            values.update({_key(name): value for name, value in parser.items(section) if value})
