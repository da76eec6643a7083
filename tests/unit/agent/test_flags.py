import argparse

import pytest

from agent.errors import ConfigError
from agent.flags import add_flag


def parse(arguments: list[str], **options: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="outstation")
    add_flag(parser, "--port", env="OUTSTATION_TEST_PORT", help="The port.", default=1, type=int, **options)
    add_flag(parser, "--quiet", env="OUTSTATION_TEST_QUIET", help="Say less.", switch=True)
    return parser.parse_args(arguments)


def test_environment_twin_replaces_the_default_and_the_command_line_beats_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parse([]).port == 1
    monkeypatch.setenv("OUTSTATION_TEST_PORT", "2")
    assert parse([]).port == 2
    assert parse(["--port", "3"]).port == 3


def test_switch_reads_words_and_can_be_switched_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSTATION_TEST_QUIET", "yes")
    assert parse([]).quiet is True
    assert parse(["--no-quiet"]).quiet is False


@pytest.mark.parametrize(("name", "value"), [("OUTSTATION_TEST_PORT", "many"), ("OUTSTATION_TEST_QUIET", "perhaps")])
def test_bad_environment_value_names_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} is '{value}'"):
        parse([])


def test_help_shows_the_twin_and_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    assert "[env: OUTSTATION_TEST_PORT]" in text
    assert "(default: 1)" in text
