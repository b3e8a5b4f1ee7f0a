"""The CUDA kernels that were built are all launched, in the simulator, and a step costs little."""

import pytest

from fusedstep.gpu import tables
from fusedstep.optim import Muon
from fusedstep.rules import RULES as RULE
from fusedstep.rules.spec import LARGE_MODELS
from tests.support.calls import Calls
from tests.support.cases import (
    CASES,
    DTYPES,
    NUMBERS,
    Case,
    assert_same,
    each,
    make_params,
    set_grads,
)
from tests.support.cuda_on_cpu import (
    GRADIENTS_HAVE_ANY_DTYPE,
    bfloat16_gradients,
    check,
    is_stored,
    kernels,
    launched,
    library,
)
from tests.support.cuda_on_ptx import simulated
from tests.support.exchange import ROLES, FakeProcesses, exchanged
from tests.support.problems import Problem
from tests.support.rule_cases import ELEMENTWISE_RULES, is_factored, rule_of

pytestmark = pytest.mark.usefixtures("simulator")

F32, BF16, F16, F64 = DTYPES
CASE = {case.name: case for case in CASES}
ADAMW = CASE["adamw"]
PART_CAPPED, MOMENTUM = CASE["adafactor-part-capped"], CASE["hf-adafactor-momentum"]
TRAINER = CASE["hf-adafactor-trainer"]
MUON = Case("muon", Muon, Muon)


def states_in(dtype_of):
    """Converts the states after the first step, unless all is in float64."""

    def prepare(optimizer, params, step):
        for param in params if step == 1 and params[0].dtype != F64 else ():
            for key, value in optimizer.state[param].items():
                if key not in NUMBERS:
                    optimizer.state[param][key] = value.to(dtype_of(param))

    return prepare


in_float32 = states_in(lambda param: F32)
in_16_bits = states_in(lambda param: BF16 if param.dtype == F32 else param.dtype)


RULES = [*ELEMENTWISE_RULES, PART_CAPPED, MOMENTUM, TRAINER]
SHAPES = [
    (7,),
    (64, 16),
    (300, 24),
    (33, 17),
    (3, 5, 7),
    (1, 4104),
    (1, 4107),
    (1, 8200),
    (1, 8201),
    (9, 8208),
    (9, 12296),
]


@pytest.mark.usefixtures("small_units")
def test_every_kernel_that_was_built_is_launched_and_right(simulator):
    for case in RULES:
        for dtype in DTYPES:
            chain = 64 * (dtype == F64)
            check(Problem(case, SHAPES, (dtype,), prepare=in_float32, chain=chain))
        if is_factored(case) or RULE[rule_of(case)].dtypes == LARGE_MODELS:
            if GRADIENTS_HAVE_ANY_DTYPE:
                check(Problem(case, SHAPES, prepare=bfloat16_gradients))
            for dtype in (F32, BF16, F16):
                check(Problem(case, SHAPES[:2], (dtype,), prepare=in_16_bits))
    for dtype in (F32, F64):  # sums have the type of the computation, whatever was read
        for role in ROLES:
            problem = Problem(MOMENTUM, [(7,), (33, 17)], (dtype,))
            check(exchanged(problem, FakeProcesses(), role))
    matrices = Problem(MUON, [(64, 16), (33, 17)], (F32,))  # its u is bfloat16
    assert_same(*matrices.run("simcuda"), *matrices.run("reference"))
    # test_stored.py launches the others.
    built = {own for own in kernels(library()) if not is_stored(own)}
    missing = built ^ launched(simulator).keys()
    assert not missing or (
        not GRADIENTS_HAVE_ANY_DTYPE and all(" fp32/bf16/" in own for own in missing)
    )


@each([ADAMW, PART_CAPPED, MOMENTUM])
def test_launches_do_not_grow_with_the_number_of_parameters(case, simulator):
    counts = []
    for copies in (1, 12):
        params = make_params(copies * [(7,), (33, 17), (16, 16), (3, 5, 7)])
        optimizer = case.make(params, backend="simcuda")
        for step in range(3):
            set_grads(params, step)
            simulator.reset()
            optimizer.step()
            counts.append(sum(launched(simulator).values()))
    assert len(set(counts)) == 1


@each([ADAMW, PART_CAPPED, MOMENTUM])
def test_nothing_is_prepared_or_allocated_again_in_a_later_step(case, simulator, monkeypatch):
    uploaded, real = [], tables.upload
    monkeypatch.setattr(tables, "upload", lambda x, d: uploaded.append(x.shape) or real(x, d))
    params = make_params([(7,), (33, 17), (64, 64)])
    optimizer = case.make(params, backend="simcuda")
    set_grads(params, 0)
    optimizer.step()
    launchers = optimizer._plan.launchers
    kept = [[x.data_ptr() for x in own.kept] for own in launchers]
    counts = []
    for _ in range(3):
        uploaded.clear()
        simulator.reset()
        with Calls() as calls:
            optimizer.step()
        assert optimizer._plan.launchers is launchers
        assert [[x.data_ptr() for x in own.kept] for own in launchers] == kept
        assert not uploaded  # launches take the scalars by value
        assert not simulator.memsets()
        counts.append(dict(calls.count))
    assert counts[0] == counts[1] == counts[2]
    assert not [name for name in counts[0] if "empty" in name or "zeros" in name]


@pytest.mark.parametrize("n_groups", [1, 3, 40])
@each([ADAMW, PART_CAPPED, MOMENTUM])
def test_scalars_by_value_and_in_memory_give_the_same_bits(n_groups, case, simulator, monkeypatch):
    """Each group has rows of its own. Those of 40 groups are too many to go by value."""
    module, found, uploaded = simulated()[0], [], []
    real = tables.upload
    monkeypatch.setattr(tables, "upload", lambda x, d: uploaded.append(x.dtype) or real(x, d))
    for most in (module.VALUES, 0):
        monkeypatch.setattr(module, "VALUES", most)
        params = make_params([(7,), (9, 5)] * n_groups)
        groups = [
            {"params": params[2 * k : 2 * k + 2], "lr": 1e-3 * (k + 1)} for k in range(n_groups)
        ]
        optimizer = case.make(groups, backend="simcuda")
        for step in range(3):
            set_grads(params, step)
            uploaded.clear()
            optimizer.step()
        length = 2 + len(optimizer._plan.buckets[0].rule.scalars)
        assert (F64 in uploaded) == (n_groups * length > most)
        found.append((optimizer, params))
    assert_same(*found[0], *found[1])
