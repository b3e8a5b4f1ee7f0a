"""Rules for the tests themselves: what they may import, and what belongs in which folder."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fusedstep.optim import Muon, SparseAdam
from fusedstep.optim.base import FusedOptimizer
from fusedstep.optim.release import OneParameter
from fusedstep.rules import RULES
from tests.support import budgets
from tests.support.cases import CASES
from tests.support.fake_device import OPTIONS as ON_A_DEVICE
from tests.support.rule_cases import CASE_OF, ELEMENTWISE, FACTORED, rule_of
from tests.support.wrong_values import WRONG

TESTS = Path(__file__).parents[1]
TOOLS = ("ptxrun", "simcuda")
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py"))


def imports_of(text, file):
    """The full names of all that a file of tests/ imports, and their modules: both
    `tests.support.cases.each` and `tests.support.cases`."""
    package = ["tests", *Path(file).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    return found


def from_test_files(text, file):
    """Imports from another test file."""
    tests = {"tests." + one[: -len(".py")].replace("/", ".") for one in FILES if "/test_" in one}
    return {
        name for name in imports_of(text, file) if name in tests or name.rpartition(".")[0] in tests
    }


def from_outside(text, file):
    """Imports from the package, or from tests outside the tool's folder."""
    tool = "tests." + Path(file).parts[0]
    return {
        name
        for name in imports_of(text, file)
        if name.split(".")[0] in ("fusedstep", "tests") and not f"{name}.".startswith(f"{tool}.")
    }


@pytest.mark.parametrize("file", FILES)
def test_no_file_imports_from_a_test_file(file):
    assert not from_test_files((TESTS / file).read_text(), file)


@pytest.mark.parametrize("file", [file for file in FILES if file.split("/")[0] in TOOLS])
def test_the_tools_know_nothing_of_the_package(file):
    assert not from_outside((TESTS / file).read_text(), file)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_says_what_it_is(tool):
    text = (TESTS / tool / "README.md").read_text()
    assert text.startswith(f"# {tool}: ") and "## What it cannot see" in text


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("support/")])
def test_support_holds_no_test(file):
    tree = ast.parse((TESTS / file).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert not Path(file).name.startswith("test_")
    assert not {name for name in names if name.lower().startswith("test")}


def test_every_test_lies_in_a_folder_that_says_what_it_is_for():
    assert [file for file in FILES if "/" not in file] == ["__init__.py", "conftest.py"]
    for folder in {(TESTS / file).parent for file in FILES}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "from tests.contracts.test_peers import STEPS",
        "from tests.contracts import test_peers",
        "from .test_peers import STEPS",
        "from . import test_peers",
        "from ..optim import test_amp as amp",
        "def f():\n    import tests.contracts.test_peers",
    ],
)
def test_an_import_from_a_test_file_is_seen(text):
    assert from_test_files(text, "contracts/test_errors.py")


@pytest.mark.parametrize(
    "text",
    [
        "import fusedstep",
        "from fusedstep.gpu import cut",
        "from tests.support.cases import CASES",
        "from ..support import cases",
        "from tests import simcuda",
    ],
)
def test_an_import_from_outside_is_seen_in_a_tool(text):
    assert from_outside(text, "ptxrun/test_memory.py")
    assert not from_outside("import numpy\nfrom . import Fault", "ptxrun/test_memory.py")


def test_every_rule_has_a_case():
    """The contracts run over the cases, so a rule without a case is not tested."""
    missing = set(RULES) - set(CASE_OF)
    assert not missing, f"add a case to tests/support/cases.py for: {sorted(missing)}"


def subclasses(own):
    return {own}.union(*map(subclasses, own.__subclasses__()))


def optimizers():
    """The optimizers of the package, from base to subclass."""
    declared = {c for c in subclasses(FusedOptimizer) if c.__module__.startswith("fusedstep.")}
    own = {c for c in declared if not issubclass(c, OneParameter)}
    return {c for c in own if c._rule is not FusedOptimizer._rule}


def test_every_optimizer_of_the_package_has_a_case():
    missing = optimizers() - {case.ours for case in CASES} - {Muon}  # it takes matrices only
    assert not missing, f"add a case to tests/support/cases.py for: {missing}"


def public_name(own):
    return f"{own.__module__.rpartition('.')[0]}.{own.__name__}"


def test_every_optimizer_can_be_imported_from_its_folder():
    for own in optimizers():
        folder = own.__module__.rpartition(".")[0]
        names = import_module(folder).__all__
        assert own.__name__ in names, f"add {own.__name__} to __all__ of {folder}"


def test_readmes_table_has_every_optimizer_once_with_its_peer():
    readme = (TESTS.parent / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(fusedstep\.\w+\.\w+)` \| (.*?) \|", readme, re.MULTILINE))
    assert sorted(re.findall(r"^\| `(fusedstep\.\w+\.\w+)` \|", readme, re.MULTILINE)) == sorted(
        map(public_name, optimizers() | {SparseAdam})
    )
    for case in CASES:
        if case.peer.__module__.startswith("torch."):
            peer = f"`torch.optim.{case.peer.__name__}`"
            assert rows[public_name(case.ours)].startswith(peer)


def test_every_dense_optimizer_of_torch_has_one_of_ours():
    """LBFGS calls a closure many times. SparseAdam and Muon have tests of their own."""
    public = {
        value
        for value in vars(torch.optim).values()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    others = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
    missing = {own.__name__ for own in public} - others - {c.peer.__name__ for c in CASES}
    assert not missing


def test_every_optimizer_refuses_wrong_values():
    missing = optimizers() - set(WRONG)
    assert not missing, f"add wrong values to tests/support/wrong_values.py for: {missing}"


def test_every_optimizer_that_counts_on_a_device_has_options_there():
    takes = {case.ours for case in CASES if case.takes("capturable")}
    missing = takes - {ours for ours, _ in ON_A_DEVICE.values()}
    assert not missing, f"add options to tests/support/fake_device.py for: {missing}"


def test_a_new_elementwise_rule_is_not_taken_for_a_factored_one():
    """A rule that is not factored must have the same bits on all backends."""
    assert {RULES[rule_of(case)].factored for case in FACTORED} == {True}
    assert {RULES[rule_of(case)].factored for case in ELEMENTWISE} == {False}
    assert len(FACTORED) + len(ELEMENTWISE) == len(CASES)


each_budget = pytest.mark.parametrize(
    "backend", [budgets.CUDA, *map(budgets.of_triton, budgets.TRITON_RELEASES)], ids=str
)


@each_budget
def test_budgets_are_as_make_budgets_writes_them(backend):
    """Sorted, with a line for each kernel."""
    text = backend.file.read_text()
    assert text == budgets.text(backend.measured_with, backend.kernels)
    assert len(text.splitlines()) == len(backend.kernels) + 5


@each_budget
def test_a_kernel_must_be_in_its_budget_exactly(backend):
    kernel, numbers = next(iter(backend.kernels.items()))
    what, most = next(iter(numbers.items()))
    assert not backend.complaint(kernel, what, most)
    assert backend.complaint(kernel, what, most + 1) == f"{most + 1} registers of {most}"
    for unknown in ((f"{kernel}, another", what), (kernel, "another GPU")):
        assert "no budget. Run `make budgets`" in backend.complaint(*unknown, 1)
    assert not backend.differences(backend.kernels)
    for other in ({}, {**backend.kernels, "another": {}}, {**backend.kernels, kernel: {}}):
        assert "`make budgets`" in backend.differences(other)[-1]
