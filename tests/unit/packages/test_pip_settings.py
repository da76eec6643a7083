"""The board's pip configuration, as pip reads it and as uv is told it."""

from __future__ import annotations

from pathlib import Path

from agent.runtime.pip_settings import PipSettings, configuration_files, without_credentials


def settings(folder: Path, *texts: str, **environ: str) -> PipSettings:
    files = []
    for number, text in enumerate(texts):
        files.append(folder / f"{number}.conf")
        files[-1].write_text(text)
    return PipSettings(environ, files)


def test_later_files_and_then_the_environment_win(tmp_path: Path) -> None:
    first = "[global]\nindex-url = https://one.example/simple\ntimeout = 5\nproxy = http://proxy.example\n"
    second = "[global]\nindex_url = https://two.example/simple\n"

    found = settings(tmp_path, first, second, PIP_DEFAULT_TIMEOUT="60", PIP_PROXY="http://other.example", PIP_CERT="")

    assert found.get("index-url") == "https://two.example/simple"
    assert found.get("timeout") == "5"
    assert found.get("proxy") == "http://other.example"
    assert found.get("cert") == ""


def test_the_install_section_beats_the_global_one_of_any_file(tmp_path: Path) -> None:
    found = settings(tmp_path, "[install]\nno-index = true\n", "[global]\nno-index = false\n[list]\npre = yes\n")

    assert found.get_boolean("no-index")
    assert not found.get_boolean("pre")


def test_a_file_that_cannot_be_read_counts_for_nothing(tmp_path: Path) -> None:
    found = PipSettings({}, [tmp_path / "missing", tmp_path])

    assert found.get("index-url") == ""
    assert settings(tmp_path, "not an ini file", "[global]\nproxy = http://p\n").get("proxy") == "http://p"


def test_uv_is_told_the_same(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        "[global]\nindex-url = https://a.example/simple\nextra-index-url =\n  https://b.example/simple\n  https://c.example/simple\n"
        "find-links = /opt/one\n  /opt/two\ncert = /etc/ca.pem\ntrusted-host = b.example\nproxy = http://proxy.example:3128\n"
        "no-index = 1\npre = on\nonly-binary = :all:\n",
    )

    assert found.for_uv({}) == {
        "UV_DEFAULT_INDEX": "https://a.example/simple",
        "UV_INDEX": "https://b.example/simple https://c.example/simple",
        "UV_FIND_LINKS": "/opt/one,/opt/two",
        "UV_INSECURE_HOST": "b.example",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "HTTPS_PROXY": "http://proxy.example:3128",
        "HTTP_PROXY": "http://proxy.example:3128",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert found.uv_arguments() == ["--no-index", "--prerelease", "allow", "--only-binary", ":all:"]


def test_what_the_operator_told_uv_is_left_alone(tmp_path: Path) -> None:
    found = settings(tmp_path, "[global]\nindex-url = https://a.example/simple\nproxy = http://proxy.example\n")

    assert found.for_uv({"UV_DEFAULT_INDEX": "https://mine.example", "https_proxy": "http://mine.example"}) == {
        "HTTP_PROXY": "http://proxy.example"
    }


def test_a_board_without_configuration_tells_uv_nothing() -> None:
    assert PipSettings({}, []).for_uv({}) == {}
    assert PipSettings({}, []).uv_arguments() == []


def test_files_are_read_in_pips_order(tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.conf"
    environ = {"HOME": "/home/pi", "XDG_CONFIG_DIRS": "/etc/xdg"}
    names = [str(file) for file in configuration_files(environ)]

    assert names[:4] == [
        "/etc/xdg/pip/pip.conf",
        "/etc/pip.conf",
        "/home/pi/.pip/pip.conf",
        "/home/pi/.config/pip/pip.conf",
    ]
    chosen.touch()
    with_chosen = [str(file) for file in configuration_files({**environ, "PIP_CONFIG_FILE": str(chosen)})]
    assert with_chosen == [name for name in names if not name.startswith("/home/pi")] + [str(chosen)]
    assert configuration_files({"PIP_CONFIG_FILE": "/dev/null"}) == []


def test_credentials_are_taken_out_of_every_address() -> None:
    text = "Looking in https://me:s3cret@a.example/simple, http://token@b.example and `git+ssh://git@c.example/x@1`"

    assert without_credentials(text) == (
        "Looking in https://***@a.example/simple, http://***@b.example and `git+ssh://***@c.example/x@1`"
    )
