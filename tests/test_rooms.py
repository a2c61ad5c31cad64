"""The rooms of cleanrl_utils: imports run downwards only, in no circle, and no module is long."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "cleanrl_utils"
ROOMS = ("ground", "devices", "models", "evals", "run", "report", "benchmark", "commands")
"""From low to high: a room may import itself and what is below it."""
GROUND = (
    "errors",
    "console",
    "drawing",
    "files",
    "record",
    "flag_files",
    "flag_help",
    "flags",
    "private",
    "ranges",
    "seeds",
    "signals",
)
COMMANDS = ("enjoy", "curves", "huggingface", "zoo")
LINES = 300


def name_of(path: Path) -> str:
    """A module's name below `cleanrl_utils`; a package is its __init__."""
    return ".".join(path.relative_to(HELPERS).with_suffix("").parts)


MODULES = {name_of(path): path for path in sorted(HELPERS.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room of a module."""
    first = module.split(".")[0]
    if first in GROUND or first == "__init__":
        return "ground"
    return "commands" if first in COMMANDS else first


def imports_of(path: Path) -> set[str]:
    """The helper modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            assert package != "cleanrl", f"{path} imports a script"
            if package == "cleanrl_utils":
                found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def test_every_module_is_in_a_room():
    assert {room_of(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upwards(module):
    assert IMPORTS[module] <= MODULES.keys(), "something else than a module or its content is imported"
    rank = ROOMS.index(room_of(module))
    assert [name for name in IMPORTS[module] if ROOMS.index(room_of(name)) > rank] == []


def test_no_imports_run_in_a_circle():
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises an error that names the circle


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_long(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize("room", [room for room in ROOMS if (HELPERS / room).is_dir()])
def test_a_room_only_says_what_it_is_for(room):
    """Imports name the module that they are from, so that nothing is exported twice."""
    (statement,) = ast.parse((HELPERS / room / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value.value, str)
