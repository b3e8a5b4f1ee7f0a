"""Checks of the machine code and PTX of every CUDA kernel: no spills, registers within budget,
16-byte accesses, exact arithmetic, no atomic sums. Nothing is executed."""

import functools
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fusedstep.rules import RULES
from tests.ptxrun.mangled import Name, parse
from tests.ptxrun.nvcc import NEEDS_NVCC, OPTIONS
from tests.support.budgets import CUDA as BUDGETS
from tests.support.budgets import REGISTERS
from tests.support.cuda_compiled import (
    COUNTED,
    TARGETS,
    cuobjdump,
    is_specialized,
    label,
    module_file,
    ptx_of,
    release,
    resources,
    table,
    texts,
    with_accesses,
)

pytest_plugins = ["tests.ptxrun.needs_nvcc"]
each_target = pytest.mark.parametrize("target", TARGETS)

# A block of a factored rule has 512 threads. With more registers it could not run. Of elementwise
# blocks, which have 128 threads, several should fit on a multiprocessor.
MOST_REGISTERS = REGISTERS // 512
MOST_OF_ELEMENTWISE = REGISTERS // 128 // 3
# Kinds of work whose source uses fma on purpose.
FUSED = ("STATISTICS", "COLUMN_SUMS")


class Gate:
    """The facts found in a file."""

    def __init__(self, file):
        self.file = file

    @functools.cached_property
    def resources(self):
        return resources(self.file)

    @functools.cached_property
    def texts(self):
        return texts(self.file)

    @functools.cache  # noqa: B019
    def on(self, target):
        return with_accesses(self.file, target, self.resources)

    def complaints(self, check, target):
        found = {name: check(name, facts) for name, facts in self.on(target).items()}
        return {label(name): words for name, words in found.items() if words}


@pytest.fixture(scope="module")
def gate():
    file = module_file()
    if file is None or cuobjdump() is None:
        pytest.skip(NEEDS_NVCC)
    return Gate(file)


def spills(name, facts):
    return facts.spilled and f"{facts.spilled} bytes with {facts.registers} registers"


def over_budget(name, facts, target):
    return BUDGETS.complaint(label(name), target, facts.registers)


def generic(name, facts):
    return facts.generic and f"{facts.generic} accesses to memory of an unknown kind"


def narrow(name, facts, target):
    """Counts are exact in PTX only. The assembler may duplicate code, so there one is enough."""
    loads, stores = expected = [BUDGETS.of(label(name), what) or 0 for what in ("loads", "stores")]
    found = [facts.loads[16], facts.stores[16]]
    fits = (
        found == expected
        if target == COUNTED
        else list(map(bool, found)) == [loads > 0, stores > 0]
    )
    if not fits or (is_specialized(name) and not loads):
        return f"{found} loads and stores of 16 bytes, expected {expected}"
    return ""


def inexact(name, text):
    own = text.inexact
    if label(name).split()[0] in FUSED:
        own = {one for one in own if not one.startswith("fma.rn.f")}
    return sorted(own)


def missing(gate):
    """Kernels that are missing for some GPU, or for future GPUs."""
    there = {target: {name for t, name in gate.resources if t == target} for target in TARGETS}
    there["PTX"] = set(gate.texts)
    every = set().union(*there.values())
    return {where: {label(n) for n in every - own} for where, own in there.items() if every - own}


def test_every_gpu_has_every_kernel_and_so_have_gpus_to_come(gate):
    assert not missing(gate)
    assert {target for target, _ in gate.resources} == set(TARGETS)
    newest = TARGETS[-1].replace("sm_", ".target sm_")
    assert all(newest in module.text for module in ptx_of(gate.file))


def test_the_budgets_have_a_line_for_every_kernel_and_no_other(gate):
    assert {label(name) for name in gate.texts} == set(BUDGETS.kernels), BUDGETS.advice


@each_target
def test_nothing_spills(gate, target):
    assert not gate.complaints(spills, target)


@each_target
def test_registers_stay_in_their_budget(gate, target):
    assert not gate.complaints(functools.partial(over_budget, target=target), target)


def test_no_budget_is_larger_than_it_has_to_be(gate):
    """So that a regression of 10 % shows."""
    if release(gate.file) != BUDGETS.measured_with:
        pytest.skip("the budgets were measured with another release of nvcc")
    measured = table({target: gate.on(target) for target in TARGETS})
    assert not BUDGETS.differences(measured)


def test_no_budget_is_larger_than_what_a_block_can_have():
    for name, kernel in BUDGETS.kernels.items():
        most = MOST_OF_ELEMENTWISE if name.split()[0] in RULES else MOST_REGISTERS
        assert max(kernel[target] for target in TARGETS) <= most, name


@each_target
def test_whole_vectors_move_16_bytes_at_a_time(gate, target):
    assert not gate.complaints(functools.partial(narrow, target=target), target)


@each_target
def test_every_access_is_known_to_be_to_global_memory(gate, target):
    assert not gate.complaints(generic, target)


def test_every_kernel_of_a_phase_waits_for_the_one_before_it_reads_anything(gate):
    """Its launch does not wait. A kernel that left early would let the next one start too early."""
    phases = 0
    for module in ptx_of(gate.file):
        for entry in module.entries:
            if parse(entry).function.endswith("::phase"):
                body = module.body(module.functions[entry])
                reads = [at for at in map(body.find, ("ld.global", "ret;")) if at >= 0]
                assert 0 <= body.find("griddepcontrol.wait") < min(reads), entry
                phases += 1
    assert phases > 40


def test_arithmetic_is_exact(gate):
    assert not {label(n): words for n, text in gate.texts.items() if (words := inexact(n, text))}


def test_no_sum_is_atomic(gate):
    assert not [label(name) for name, text in gate.texts.items() if text.float_atomics]


# Faults, one for each check.


@pytest.fixture(scope="module")
def planted(nvcc, tmp_path_factory):
    if cuobjdump() is None:
        pytest.skip(NEEDS_NVCC)
    source = Path(__file__).with_name("planted.cu")
    made = tmp_path_factory.mktemp("planted") / "planted.o"
    codes = [f"-gencode=arch=compute_{t[3:]},code={t}" for t in TARGETS]
    codes[-1] = codes[-1].replace("code=sm_100", "code=[sm_100,compute_100]")
    command = [nvcc, "-c", *OPTIONS, *codes, str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    return Gate(made)


@each_target
def test_the_checks_see_what_the_machine_code_has(planted, target):
    own = {label(name): facts for name, facts in planted.on(target).items()}
    assert [name for name, facts in own.items() if spills(name, facts)] == ["spilled"]
    assert [name for name, facts in own.items() if generic(name, facts)] == ["generic"]
    assert (own["plain"].loads, own["plain"].stores) == ({16: 1}, {16: 1})
    assert (own["narrow"].loads, own["narrow"].stores) == ({4: 4}, {4: 4})
    assert 0 < own["plain"].registers <= 32 < own["spilled"].registers + 1


def test_the_checks_see_what_is_not_exact(planted):
    own = {label(name): text for name, text in planted.texts.items()}
    found = {name for name, text in own.items() if inexact(Name(name), text)}
    assert found == {"fused", "approximate"}
    assert not inexact(Name("a::phase", (2, -2, 0, -2, 1, False)), own["fused"])
    assert inexact(Name("a::phase", (10, 0, 0, -2, 1, False)), own["fused"])
    assert inexact(Name("a::phase", (2, -2, 0, -2, 1, False)), own["approximate"])
    assert [name for name, text in own.items() if text.float_atomics] == ["atomic"]


def test_the_check_sees_a_kernel_that_some_gpu_does_not_have(planted):
    assert missing(planted) == {"sm_80": {"late<3>"}}


def test_the_checks_see_too_many_registers_and_too_few_wide_accesses(planted):
    (plain,) = (facts for name, facts in planted.on("sm_90").items() if label(name) == "plain")
    statistics = Name("fusedstep::cuda::phase", (2, -2, 0, -2, 1, False))
    assert narrow(statistics, plain, "sm_90")
    assert not over_budget(statistics, plain, "sm_90")
    assert over_budget(statistics, replace(plain, registers=129), "sm_90") == "129 registers of 120"
    (more,) = (facts for name, facts in planted.on("sm_90").items() if label(name) == "late<3>")
    said = over_budget(Name("late", (3,)), more, "sm_90")
    assert "no budget. Run `make budgets`, which writes tests/cuda/budgets.json" in said
