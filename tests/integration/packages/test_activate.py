"""What a service's process imports once its packages are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

MakeWheel = Callable[..., Path]
RunPython = Callable[..., Any]

INSTALL = """
def install(*requirements, service="one_py"):
    installer = PackageInstaller(Path({root!r}), log=lambda text: None, installer="uv")
    return installer.ensure(service, list(requirements))
"""


def code(root: Path, *lines: str) -> str:
    return "\n".join([INSTALL.format(root=str(root)), *lines])


def test_the_services_version_comes_before_the_nodes(make_wheel: MakeWheel, run_python: RunPython, root: Path) -> None:
    make_wheel("markdown2", "99.0", files={"markdown2.py": "x = 'the service'\n"})

    answer = run_python(
        code(
            root,
            "stale = activate(install('markdown2==99'))",
            "import markdown2, importlib.metadata",
            "answer = [stale, markdown2.x, importlib.metadata.version('markdown2')]",
        )
    )

    assert answer == [[], "the service", "99.0"]


def test_another_version_that_is_imported_already_is_said(
    make_wheel: MakeWheel, run_python: RunPython, root: Path
) -> None:
    make_wheel("msgspec", "99.0")

    (sentence,) = run_python(code(root, "import msgspec", "answer = activate(install('msgspec==99'))"))

    assert sentence.startswith("msgspec 99.0 was installed, but msgspec 0.")
    assert "is imported already and stays in use in this process" in sentence


def test_pth_files_are_honoured(make_wheel: MakeWheel, run_python: RunPython, root: Path) -> None:
    make_wheel(
        "acme",
        "1.0",
        files={"acme.pth": "acme_lib\nimport sys; sys.acme_was_here = True\n", "acme_lib/hidden.py": "x = 1\n"},
    )

    answer = run_python(
        code(
            root,
            "folder = install('acme'); activate(folder)",
            "import hidden",
            "answer = [hidden.x, sys.acme_was_here, sys.path[:2] == [str(folder), str(folder / 'acme_lib')]]",
        )
    )

    assert answer == [1, True, True]


def test_namespace_packages_of_both_kinds_gain_parts_after_they_were_imported(
    make_wheel: MakeWheel, run_python: RunPython, root: Path
) -> None:
    pkgutil = "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n"
    make_wheel("one", "1.0", files={"space/one.py": "x = 1\n", "old/__init__.py": pkgutil, "old/one.py": "x = 1\n"})
    make_wheel("two", "1.0", files={"space/two.py": "x = 2\n", "old/__init__.py": pkgutil, "old/two.py": "x = 2\n"})

    answer = run_python(
        code(
            root,
            "elsewhere = install('one', service='node')",
            "sys.path.append(str(elsewhere.rename(elsewhere.parent.parent / 'elsewhere')))",
            "import space.one, old.one",
            "activate(install('two'))",
            "import space.two, old.two",
            "answer = [space.one.x, space.two.x, old.one.x, old.two.x]",
        )
    )

    assert answer == [1, 2, 1, 2]


def test_a_larger_folder_takes_the_place_of_a_smaller_one(
    make_wheel: MakeWheel, run_python: RunPython, root: Path
) -> None:
    make_wheel("acme", "1.0")
    make_wheel("other", "1.0")

    answer = run_python(
        code(
            root,
            f"installer = PackageInstaller(Path({str(root)!r}), log=lambda text: None)",
            "first = installer.ensure('one_py', ['acme']); activate(first)",
            "import acme",
            "second = installer.ensure('one_py', ['other']); stale = activate(second); activate(second)",
            "import other",
            f"below = [entry for entry in sys.path if entry.startswith({str(root)!r})]",
            "answer = [stale, below == [str(second)], other.version, acme.__file__.startswith(str(first))]",
        )
    )

    assert answer == [[], True, "1.0", True]
