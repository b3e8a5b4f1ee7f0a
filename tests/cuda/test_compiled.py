"""The machine code and the PTX of every CUDA kernel that was built: no spills, registers in their
budget, 16 bytes at a time, exact arithmetic, no atomic sums. Nothing is executed."""

import functools
import subprocess
from pathlib import Path

import pytest

from tests.ptxrun.mangled import Name
from tests.ptxrun.nvcc import NEEDS_NVCC, OPTIONS
from tests.support.cuda_compiled import (
    COUNTED,
    TARGETS,
    cuobjdump,
    is_specialized,
    label,
    module_file,
    ptx_of,
    resources,
    table,
    texts,
    with_accesses,
)

pytest_plugins = ["tests.ptxrun.needs_nvcc"]
each_target = pytest.mark.parametrize("target", TARGETS)

# Registers of a thread at most, on each of TARGETS: what was measured, rounded up to what is
# allocated at a time, 8. A block of a factored rule has 512 threads, so 128 is all there is for one
# block on a multiprocessor, and 64 for two. Then 16-byte loads and stores in the code for COUNTED.
# `python -m tests.support.cuda_compiled` prints the table.
BUDGETS = """
COLUMNS -/-/-                           96   96  112    0    0
COLUMNS -/-/- in fp64                  112  112  112    0    0
ENERGY -/any/-                          88   88   80    0    0
ENERGY -/any/- in fp64                  88   88   80    0    0
ENERGY -/bf16/-                         88   88   80    2    0
ENERGY -/fp32/-                         88   88   80    2    0
FINISH -/-/-                            64   64   64    0    0
FINISH -/-/- in fp64                    72   72   72    0    0
REPORT -/-/-                            56   56   56    0    0
REPORT -/-/- in fp64                    56   56   56    0    0
ROWS -/-/-                              64   64   64    0    0
ROWS -/-/- in fp64                      72   72   80    0    0
ROW_SUMS -/any/-                        56   56   80    0    0
ROW_SUMS -/any/- in fp64                48   48   64    0    0
ROW_SUMS -/bf16/-                      104  104   96    8    0
ROW_SUMS -/fp32/-                       80   80   80    8    0
SQUARES any/-/-                         48   48   56    0    0
SQUARES any/-/- in fp64                 48   48   56    0    0
SQUARES bf16/-/-                        48   48   64    7    0
SQUARES fp32/-/-                        48   48   64    7    0
STATISTICS -/any/-                     112  112  128    0    0
STATISTICS -/any/- in fp64             112  120  120    0    0
STATISTICS -/any/- x2                  128  128  128    0    0
STATISTICS -/bf16/-                    128  128  128    8    0
STATISTICS -/bf16/- x2                 128  128  128    8    0
STATISTICS -/fp32/-                    128  128  128    8    0
STATISTICS -/fp32/- x2                 128  128  128    8    0
TINY -/-/-                              64   64   64    0    0
TINY -/-/- in fp64                      80   80   80    0    0
TINY_UPDATE -/-/-                       64   56   64    0    0
TINY_UPDATE -/-/- in fp64               64   72   80    0    0
TINY_UPDATE -/-/any                     64   64   64    0    0
TINY_UPDATE -/-/any in fp64             72   80   88    0    0
UPDATE any/any/-                        72   72   72    0    0
UPDATE any/any/- in fp64                88   88   88    0    0
UPDATE any/any/any                      72   72   72    0    0
UPDATE any/any/any in fp64              88   96   96    0    0
UPDATE bf16/bf16/-                      64   64   64    4    2
UPDATE bf16/bf16/fp32                  128  128  128    8    6
UPDATE fp32/fp32/-                      64   64   64    4    2
UPDATE fp32/fp32/fp32                  104  112  112    6    4
VECTOR -/-/-                            64   64   64    0    0
VECTOR -/-/- in fp64                    80   80   72    0    0
VECTOR_UPDATE -/-/-                     32   40   40    0    0
VECTOR_UPDATE -/-/- in fp64             48   48   48    0    0
VECTOR_UPDATE -/-/any                   40   40   48    0    0
VECTOR_UPDATE -/-/any in fp64           56   56   56    0    0
WIDE -/any/-                            96   96  128    0    0
WIDE -/any/- in fp64                    96   96  104    0    0
WIDE -/bf16/-                          104  120  128    8    0
WIDE -/fp32/-                          112  120  120    8    0
accumulate any/any/-                    40   48   40    6    3
accumulate any/any/- in fp64            48   56   48    6    3
accumulate fp32/bf16/-                  56   56   48    6    4
accumulate fp32/fp32/-                  48   48   40   12    6
adamw any/any/any                       64   72   64   12    9
adamw any/any/any in fp64              112  112  104   12    9
adamw bf16/bf16/bf16                    80   80   72    4    3
adamw bf16/bf16/fp32                    80   80   72    6    5
adamw fp32/fp32/fp32                    88   88   72    8    6
adamw_amsgrad any/any/any               88   96   72   15   12
adamw_amsgrad any/any/any in fp64      128  128  120   15   12
adamw_amsgrad bf16/bf16/bf16            88   88   88    5    4
adamw_amsgrad bf16/bf16/fp32            96   96   96    8    7
adamw_amsgrad fp32/fp32/fp32           104  112   80   10    8
adamw_decay_last any/any/any            64   72   64   12    9
adamw_decay_last any/any/any in fp64    96  104  104   12    9
adamw_decay_last bf16/bf16/bf16         80   80   72    4    3
adamw_decay_last bf16/bf16/fp32         88   88   72    6    5
adamw_decay_last fp32/fp32/fp32         88   88   72    8    6
waves bf16/-                           128  128  128   14    1
waves bf16/fp32                        128  128  128   16    3
waves fp32/-                           128  128  128   14    1
waves fp32/fp32                        128  128  128   15    2
"""
MEASURED_WITH = ".version 9.0"  # of PTX, which is that of CUDA 13.0
BUDGET_OF = {
    " ".join(words[:-5]): list(map(int, words[-5:]))
    for words in map(str.split, BUDGETS.strip().splitlines())
}
# Kinds of work in which the source asks for a product and a sum with one rounding.
FUSED = ("STATISTICS", "WIDE", "waves")


class Gate:
    """What was found in a file."""

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
    budget = BUDGET_OF.get(label(name), [0] * 3)[TARGETS.index(target)]
    return facts.registers > budget and f"{facts.registers} registers of {budget}"


def generic(name, facts):
    return facts.generic and f"{facts.generic} accesses to memory of an unknown kind"


def narrow(name, facts, target):
    """The assembler duplicates code as it likes, for each GPU: elsewhere there must be some."""
    loads, stores = expected = BUDGET_OF.get(label(name), [0] * 5)[3:]
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
    """Kernels that are not there for some GPU, or for GPUs to come."""
    there = {target: {name for t, name in gate.resources if t == target} for target in TARGETS}
    there["PTX"] = set(gate.texts)
    every = set().union(*there.values())
    return {where: {label(n) for n in every - own} for where, own in there.items() if every - own}


def test_every_gpu_has_every_kernel_and_so_have_gpus_to_come(gate):
    assert not missing(gate)
    assert {target for target, _ in gate.resources} == set(TARGETS)
    newest = TARGETS[-1].replace("sm_", ".target sm_")
    assert all(newest in module.text for module in ptx_of(gate.file))


def test_the_table_has_a_line_for_every_kernel_and_no_other(gate):
    assert {label(name) for name in gate.texts} == set(BUDGET_OF)


@each_target
def test_nothing_spills(gate, target):
    assert not gate.complaints(spills, target)


@each_target
def test_registers_stay_in_their_budget(gate, target):
    assert not gate.complaints(functools.partial(over_budget, target=target), target)


def test_no_budget_is_larger_than_it_has_to_be(gate):
    """So that a regression of a tenth is seen; the message is the new table."""
    if any(MEASURED_WITH not in module.text for module in ptx_of(gate.file)):
        pytest.skip("the budgets were measured with another release of nvcc")
    lines = table({target: gate.on(target) for target in TARGETS})
    assert lines == BUDGETS.strip().splitlines(), "\n".join(["", *lines])


@each_target
def test_whole_vectors_move_16_bytes_at_a_time(gate, target):
    assert not gate.complaints(functools.partial(narrow, target=target), target)


@each_target
def test_every_access_is_known_to_be_to_global_memory(gate, target):
    assert not gate.complaints(generic, target)


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
    adamw = Name("fusedstep::cuda::elementwise", (0, 0, 0, 0, False))
    assert narrow(adamw, plain, "sm_90")
    assert not over_budget(adamw, plain, "sm_90")
    assert over_budget(Name("fusedstep::cuda::elementwise", (0, 2, 2, 2, False)), plain, "sm_90")
