"""What the docs say is what there is."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.cli import _make_parser
from agent.config import AgentConfig
from agent.exitcodes import ExitCode

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


def config_keys(struct: type[msgspec.Struct], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for field in msgspec.structs.fields(struct):
        kinds = [field.type, *getattr(field.type, "__args__", ())]
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
        for kind in nested:
            keys |= config_keys(kind, f"{prefix}{field.name}.")
        if not nested:
            keys.add(prefix + field.name)
    return keys


def test_every_setting_of_a_node_is_documented_and_no_other() -> None:
    text = (REFERENCE / "configuration.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `([a-z_.0-9]+)` \|", text, re.MULTILINE))
    files = {key for key in documented if (key.endswith((".json", ".db")))}
    assert documented - files == config_keys(AgentConfig)


def test_every_command_is_documented() -> None:
    text = (REFERENCE / "commands.md").read_text("utf-8")
    parser = _make_parser("")
    commands = next(action.choices for action in parser._actions if action.choices)
    missing = [name for name in commands if f"`outstation {name}" not in text]
    assert not missing


def test_every_exit_status_is_documented() -> None:
    text = (REFERENCE / "commands.md").read_text("utf-8")
    documented = {(int(number), name) for number, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)}
    assert documented == {(status.value, status.name) for status in ExitCode}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)[^)]*\)", text)
    broken = [target for target in targets if not (page.parent / target).exists()]
    assert not broken


def test_picture_of_the_folders_is_true() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = set(re.findall(r"^\| `([a-z]+)/` \|", text, re.MULTILINE))
    there = {folder.name for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")}
    assert shown == there - {"artefacts", "build", "dist"}


def test_every_decision_record_is_listed() -> None:
    folder = ROOT / "docs" / "adr"
    listed = set(re.findall(r"\]\((\d{4}-[^)]+)\)", (folder / "README.md").read_text("utf-8")))
    assert listed == {path.name for path in folder.glob("0*.md")}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


@pytest.mark.parametrize("command", ["", "portal", "iothub", "demo", "pins"])
def test_every_flag_shows_its_environment_twin_in_the_help(command: str) -> None:
    found = 0
    for parser in parsers(_make_parser(command)):
        for action in parser._actions:
            if action.option_strings and not isinstance(action, argparse._HelpAction):
                found += 1
                assert action.help, f"{parser.prog} {action.option_strings}"
                assert re.search(r"\[env: (OUTSTATION|PORTAL)_[A-Z0-9_]+(, [a-z ]+)?\]$", action.help), (
                    f"{parser.prog} {action.option_strings}: {action.help}"
                )
    assert found > 5
