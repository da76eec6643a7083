"""What the portal reads from the library's files without running them."""

import ast
import tomllib
from pathlib import Path

import pytest

from agent.runtime.packages import pep723_dependencies

LIBRARY = sorted(path for path in Path("services/library").glob("*.py") if path.name != "__init__.py")


@pytest.fixture(params=LIBRARY, ids=lambda path: path.stem)
def file(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def constant(tree: ast.Module, name: str) -> object:
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]
    ]
    assert len(values) == 1, name
    return ast.literal_eval(values[0])


def test_the_class_is_named_as_the_file(file: Path, tree: ast.Module) -> None:
    classes = {
        node.name: [ast.unparse(base) for base in node.bases] for node in tree.body if isinstance(node, ast.ClassDef)
    }

    assert classes[file.stem] == ["CustomService"]


def test_description_and_category_can_be_read(tree: ast.Module) -> None:
    description = ast.get_docstring(tree)

    assert description
    assert len(description.splitlines()[0]) < 120
    assert isinstance(constant(tree, "CATEGORY"), str)


def test_every_property_is_described(tree: ast.Module) -> None:
    properties = constant(tree, "PROPERTIES")

    assert isinstance(properties, list)
    for each in properties:
        assert set(each) == {"id", "label", "type", "default", "help"}
        assert each["type"] in ("string", "number", "boolean")
        assert isinstance(each["default"], {"string": str, "number": (int, float), "boolean": bool}[each["type"]])
        assert each["help"].endswith(".")


def test_every_property_is_read_by_the_service_and_the_other_way_round(file: Path, tree: ast.Module) -> None:
    properties = constant(tree, "PROPERTIES")
    assert isinstance(properties, list)
    source = file.read_text("utf-8").split("]\n", 1)[1]

    assert [each["id"] for each in properties if f'"{each["id"]}"' not in source] == []


def test_its_packages_are_among_those_that_the_node_brings(file: Path) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    brought = [*project["dependencies"], *project["optional-dependencies"]["gpio"]]

    assert [each for each in pep723_dependencies(file.read_text("utf-8")) if each not in brought] == []
