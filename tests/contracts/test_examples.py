"""The examples in the documentation run, and print what the text shows."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import fusedstep

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
ROOMS = ("config", "frameworks", "hf", "optim", "schedules")  # what users import
MODULES = sorted(
    name
    for _, name, is_package in pkgutil.walk_packages(fusedstep.__path__, "fusedstep.")
    if not is_package and not name.startswith(("fusedstep._", "fusedstep.kernels"))
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in finder.find(module, extraglobs={"torch": torch}):
        runner.run(example)
    assert runner.summarize().failed == 0


def public(room):
    """The public functions and classes that a package exports."""
    module = importlib.import_module(f"fusedstep.{room}")
    for name in module.__all__:
        thing = getattr(module, name)
        if isinstance(thing, type) or callable(thing):
            yield name, thing


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_has_an_example(room):
    without = [name for name, thing in public(room) if ">>>" not in (thing.__doc__ or "")]
    assert without == []


def test_the_readmes_python_is_python():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = text.split("```python\n")[1:]
    assert blocks
    for block in blocks:
        ast.parse(block.split("```")[0])
