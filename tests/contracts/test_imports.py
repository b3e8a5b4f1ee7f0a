"""There is no import circle in the package, its kernels and the benchmarks.

Imports inside a function count, and so do imports for the type checker only: two files that need
each other are really one."""

import ast
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
# The folder `kernels` is installed as fusedstep.kernels.
ROOMS = {
    "fusedstep": ROOT / "python" / "fusedstep",
    "fusedstep.kernels": ROOT / "kernels",
    "bench": ROOT / "bench",
}
COMPILED = {"fusedstep._native", "fusedstep._cuda"}  # from C++: they import none of the package


def modules_in(package, folder):
    """Name -> path of each module. Links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def names_imported(module, path):
    """The full names of all that a file imports: modules, or names in modules."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=base, names=aliases, level=level):
                above = package.split(".")
                parents = above[: len(above) + 1 - level] if level else []
                start = ".".join([*parents, *filter(None, [base])])
                yield from (f"{start}.{alias.name}" for alias in aliases)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[ast.Constant(value=str(name))],
            ):
                yield name


def graph_of(rooms):
    """Module -> the modules that it imports."""
    modules = {name: path for room in rooms.items() for name, path in modules_in(*room).items()}
    graph = {}
    for module, path in modules.items():
        names = set(names_imported(module, path)) - COMPILED
        # If a name is not a module, its module is the part before the last dot.
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (found & set(modules)) - {module}
    return graph


def reached_from(module, graph):
    reached, waiting = set(), [module]
    while waiting:
        new = graph[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def circles(graph):
    """Groups of modules that all import each other, directly or through others."""
    reached = {module: reached_from(module, graph) for module in graph}
    return {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in graph
        if module in reached[module]
    }


GRAPH = graph_of(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_no_modules_of_a_room_import_each_other(room):
    modules = modules_in(room, ROOMS[room])
    assert len(modules) > 10, f"{room} is no longer in {ROOMS[room]}: correct ROOMS"
    guilty = [sorted(circle) for circle in circles(GRAPH) if circle & set(modules)]
    assert not guilty, (
        f"these import each other: {guilty}. Move what they share into a file that imports neither"
    )


@pytest.mark.parametrize("back", [
    "def late():\n    from room.first import one",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import first",
    "import importlib\nimportlib.import_module('room.first')",
    "from .third import three",
])  # fmt: skip
def test_a_circle_is_found_wherever_the_import_stands(tmp_path, back):
    (tmp_path / "__init__.py").write_text("from .first import one")
    (tmp_path / "first.py").write_text("from .second import two")
    (tmp_path / "second.py").write_text(back)
    (tmp_path / "third.py").write_text("import room.first" if "third" in back else "")
    (found,) = circles(graph_of({"room": tmp_path}))
    others = {"room.third"} if "third" in back else set()
    assert found == {"room.first", "room.second", *others}


def test_a_package_that_shows_its_modules_is_no_circle(tmp_path):
    (tmp_path / "__init__.py").write_text("from .first import one\nfrom . import second")
    (tmp_path / "first.py").write_text("from . import second")
    (tmp_path / "second.py").write_text("import os")
    graph = graph_of({"room": tmp_path})
    assert graph["room"] == {"room.first", "room.second"}
    assert graph["room.first"] == {"room.second"} and not circles(graph)
