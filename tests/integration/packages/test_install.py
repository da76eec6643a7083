"""Installing for services with the real uv and the real pip."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.runtime.packages import PackageInstaller, PackageInstallError

MakeWheel = Callable[..., Path]
MakeInstaller = Callable[..., PackageInstaller]


def packages_of(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info"))


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("[!.]*")) if root.exists() else []


def test_two_services_have_two_versions_of_one_package(make_wheel: MakeWheel, make_installer: MakeInstaller) -> None:
    make_wheel("acme", "1.0")
    make_wheel("acme", "2.0")

    old = make_installer().ensure("one_py", ["acme<2"])
    new = make_installer().ensure("two_py", ["acme"])

    assert old is not None
    assert new is not None
    assert (packages_of(old), packages_of(new)) == (["acme-1.0"], ["acme-2.0"])
    assert old != new


def test_the_same_requirements_share_a_folder(
    make_wheel: MakeWheel, make_installer: MakeInstaller, said: list[str]
) -> None:
    make_wheel("acme", "1.0")

    folders = {make_installer().ensure(f"{number}_py", [text]) for number, text in enumerate(["acme>=1", "Acme >=1"])}

    assert len(folders) == 1
    assert len([line for line in said if line.startswith("Installing")]) == 1


def test_what_the_node_has_already_is_not_installed(make_installer: MakeInstaller, root: Path) -> None:
    assert make_installer().ensure("one_py", ["msgspec", "packaging>1; python_version>'3'"]) is None
    assert make_installer().ensure("one_py", []) is None
    assert make_installer().ensure("one_py", ["acme; sys_platform=='win32'"]) is None
    assert not root.exists()


def test_a_further_requirement_is_installed_together_with_the_earlier_ones(
    make_wheel: MakeWheel, make_installer: MakeInstaller
) -> None:
    make_wheel("acme", "1.0")
    installer = make_installer()
    first = installer.ensure("one_py", ["acme"])
    make_wheel("acme", "2.0")
    make_wheel("other", "1.0", requires=["acme"])

    second = installer.ensure("one_py", ["other"])

    assert first is not None
    assert second is not None
    # The version that may be imported already is kept, although there is a newer one now.
    assert packages_of(second) == ["acme-1.0", "other-1.0"]
    assert packages_of(first) == ["acme-1.0"]


def test_an_earlier_version_gives_way_where_it_does_not_fit(
    make_wheel: MakeWheel, make_installer: MakeInstaller
) -> None:
    make_wheel("acme", "1.0")
    installer = make_installer()
    installer.ensure("one_py", ["acme"])
    make_wheel("acme", "2.0")
    make_wheel("other", "1.0", requires=["acme>=2"])

    folder = installer.ensure("one_py", ["other"])

    assert folder is not None
    assert packages_of(folder) == ["acme-2.0", "other-1.0"]


def test_what_was_installed_starts_again_without_a_network(
    make_wheel: MakeWheel, make_installer: MakeInstaller, wheels: Path, said: list[str]
) -> None:
    make_wheel("acme", "1.0")
    make_wheel("other", "1.0")
    before = make_installer()
    before.ensure("one_py", ["acme"])
    last = before.ensure("one_py", ["other"])
    for wheel in wheels.iterdir():
        wheel.unlink()
    said.clear()

    again = make_installer(offline=True)

    # At once the folder that has both, so that nothing is imported from two.
    assert again.ensure("one_py", ["acme"]) == last
    assert again.ensure("one_py", ["other"]) == last
    assert said == []


def test_a_new_version_of_the_service_is_free_of_what_the_old_one_asked_for(
    make_wheel: MakeWheel, make_installer: MakeInstaller
) -> None:
    make_wheel("acme", "1.0")
    make_wheel("acme", "2.0")
    make_installer().ensure("one_py", ["acme<2"])

    folder = make_installer().ensure("one_py", ["acme>=2"])

    assert folder is not None
    assert packages_of(folder) == ["acme-2.0"]


def test_extras_and_what_they_need_are_installed(make_wheel: MakeWheel, make_installer: MakeInstaller) -> None:
    make_wheel("acme", "1.0", extras={"fast": "speed>=2"})
    make_wheel("speed", "2.1")
    installer = make_installer()

    plain = installer.ensure("one_py", ["acme"])
    fast = installer.ensure("one_py", ["acme[fast]"])

    assert plain is not None
    assert fast is not None
    assert (packages_of(plain), packages_of(fast)) == (["acme-1.0"], ["acme-1.0", "speed-2.1"])


def test_a_package_that_does_not_exist_gives_the_installers_reason_in_one_line(
    make_installer: MakeInstaller, root: Path, said: list[str]
) -> None:
    with pytest.raises(PackageInstallError) as error:
        make_installer().ensure("one_py", ["acme-that-is-not-there>=1"])

    text = str(error.value)
    assert text.startswith("The packages of one_py (acme-that-is-not-there>=1) could not be installed: ")
    assert "acme-that-is-not-there" in text.partition("installed: ")[2]
    assert "\n" not in text
    assert error.value.code == "package_install_failed"
    assert any("acme-that-is-not-there" in line for line in said[1:]), "the installer's own last lines are in the log"
    assert visible(root) == []


def test_requirements_that_exclude_each_other_are_both_named(
    make_wheel: MakeWheel, make_installer: MakeInstaller
) -> None:
    make_wheel("acme", "1.0")
    make_wheel("acme", "2.0")
    installer = make_installer()
    first = installer.ensure("one_py", ["acme<2"])

    with pytest.raises(PackageInstallError, match=r"acme<2 and acme>=2"):
        installer.ensure("one_py", ["acme>=2"])

    assert installer.ensure("one_py", ["acme"]) == first, "what the service had stays good"


def test_a_damaged_wheel_leaves_nothing_behind(wheels: Path, make_installer: MakeInstaller, root: Path) -> None:
    (wheels / "acme-1.0-py3-none-any.whl").write_bytes(b"PK not really")

    with pytest.raises(PackageInstallError):
        make_installer().ensure("one_py", ["acme"])

    assert visible(root) == []
    assert list(root.glob(".staging-*")) == []


def test_a_place_that_cannot_be_written_is_one_clear_error(
    make_wheel: MakeWheel, make_installer: MakeInstaller, root: Path
) -> None:
    make_wheel("acme", "1.0")
    root.write_text("a file where the folder should be")

    with pytest.raises(PackageInstallError, match="File exists .* Free some space or correct its permissions"):
        make_installer().ensure("one_py", ["acme"])


class Index(http.server.SimpleHTTPRequestHandler):
    """A package index that asks for a name and a password."""

    authorization = "Basic " + base64.b64encode(b"node:hunter2").decode()

    def do_GET(self) -> None:
        if self.headers["Authorization"] != self.authorization:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def index_of(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://node:hunter2@127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_index_with_a_password_in_pips_configuration_is_used_and_the_password_is_never_logged(
    tmp_path: Path,
    make_wheel: MakeWheel,
    make_installer: MakeInstaller,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = tmp_path / "index" / "simple" / "acme"
    project.mkdir(parents=True)
    make_wheel("acme", "1.0", folder=project)
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    configuration = tmp_path / "pip.conf"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))

    with index_of(tmp_path / "index") as address:
        configuration.write_text(f"[global]\nindex-url = {address}\nretries = 0\n")
        folder = make_installer().ensure("one_py", ["acme"])
        with pytest.raises(PackageInstallError) as error:
            make_installer().ensure("two_py", ["missing"])

    assert folder is not None
    assert packages_of(folder) == ["acme-1.0"]
    assert "hunter2" not in "\n".join([*said, str(error.value), (folder / ".outstation.json").read_text()])


def test_the_service_may_be_one_with_an_unusual_id(
    make_wheel: MakeWheel, make_installer: MakeInstaller, root: Path
) -> None:
    make_wheel("acme", "1.0")

    folder = make_installer().ensure("../../Ünusual id", ["acme"])

    assert folder is not None
    assert folder.parent == root
    assert make_installer(offline=True).ensure("../../Ünusual id", ["acme"]) == folder
    assert {path.name for path in root.iterdir()} <= {".cache", ".locks", ".services", folder.name}
