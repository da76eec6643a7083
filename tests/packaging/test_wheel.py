"""The wheel: what is in it, what it says of itself, and that it works where it is installed."""

import email
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import agent

ROOT = Path(__file__).parents[2]
SHARED = f"outstation-{agent.__version__}.data/data/share/outstation/systemd"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel alone; its dependencies are the ones of this environment."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", f"--python={python}", "install", "-qq", "--no-deps", "--no-index", wheel],
        check=True,
    )
    library = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    # A plain path entry, whose own .pth files (the editable checkout among them) are not read.
    (library / "dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return environment


def test_wheel_holds_the_packages_and_the_modules_that_services_import(names):
    assert {"base_service.py", "queue_message.py"} <= names
    assert {f"{package}/__init__.py" for package in ("agent", "services", "portal", "emulator")} <= names
    assert {"agent/py.typed", "services/py.typed"} <= names


def test_wheel_holds_the_files_of_systemd(names):
    units = {path.name for path in (ROOT / "systemd").iterdir()}

    assert {f"{SHARED}/{name}" for name in units} <= names


def test_wheel_holds_nothing_of_development(names):
    tops = {name.split("/")[0] for name in names}

    assert tops == {
        "agent",
        "services",
        "portal",
        "emulator",
        "base_service.py",
        "queue_message.py",
        f"outstation-{agent.__version__}.data",
        f"outstation-{agent.__version__}.dist-info",
    }
    assert not [name for name in names if "__pycache__" in name or name.startswith("services/toplevel/")]


def test_wheel_holds_every_file_of_the_packages_that_is_not_python(names):
    tracked = subprocess.run(
        ["git", "ls-files", "agent", "services", "portal", "emulator"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    data = {name for name in tracked if not name.endswith(".py")}

    assert data <= names


def test_metadata_says_what_is_installed(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = f"outstation-{agent.__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()

    assert metadata["Name"] == "outstation"
    assert metadata["Version"] == agent.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    extras = set(metadata.get_all("Provides-Extra"))
    assert {"node", "portal", "emulator", "demo"} <= extras
    assert "outstation = agent.cli:main" in entry_points
    assert "outstation-simulated = services.sdk.simulated_pins:SimulatedFactory" in entry_points


@pytest.mark.parametrize("statement", ["from base_service import CustomService", "import queue_message"])
def test_services_import_what_they_always_did(installed, statement, tmp_path):
    script = f"{statement}; import services, sys; print(services.__file__)"

    result = subprocess.run([installed / "bin" / "python", "-c", script], cwd=tmp_path, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(installed)


def test_command_says_its_version(installed, tmp_path):
    result = subprocess.run([installed / "bin" / "outstation", "version"], cwd=tmp_path, capture_output=True, text=True)

    assert (result.returncode, result.stderr) == (0, "")
    assert agent.__version__ in result.stdout


def test_installed_setup_script_refuses_an_unknown_role_in_one_sentence(installed):
    script = installed / "share" / "outstation" / "systemd" / "install"

    result = subprocess.run(["sh", script, "toaster"], capture_output=True, text=True)

    assert result.returncode == 1
    assert result.stderr == f"Say what this machine is to be: '{script} agent' or '{script} portal'.\n"
