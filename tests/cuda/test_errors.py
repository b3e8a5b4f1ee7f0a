"""The CUDA backend on the simulator: errors of CUDA, and tensors of more elements than 32 bits can
count."""

import math
import re

import pytest
import torch

from fusedstep import backends
from fusedstep.backends import cuda
from tests.support.cases import CASES, assert_same, each, make_params, set_grads
from tests.support.cuda_on_cpu import check
from tests.support.cuda_on_ptx import simulated
from tests.support.problems import Problem
from tests.support.sweeps import sweep

pytestmark = pytest.mark.usefixtures("simulator")

CASE = {case.name: case for case in CASES}
ADAMW, ADAFACTOR, MOMENTUM = CASE["adamw"], CASE["hf-adafactor"], CASE["hf-adafactor-momentum"]
INVALID_VALUE, TOO_OLD, NO_CODE, TOO_LARGE = 1, 35, 209, 701


def started(case, shapes):
    params = make_params(shapes)
    optimizer = case.make(params, backend="simcuda")
    set_grads(params, 0)
    return optimizer, params


# Errors of CUDA.


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (ADAMW, "ELEMENTWISE could not be launched on 8 blocks"),
        (ADAFACTOR, "SQUARES could not be launched on 5 blocks"),
    ],
)
def test_a_launch_that_fails_says_what_and_why_and_the_next_step_works(case, said, simulator):
    shapes = [(4, 5), (5000, 5)]
    optimizer, _ = started(case, shapes)
    simulator.inject_error(TOO_LARGE)
    with pytest.raises(RuntimeError) as error:
        optimizer.step()
    assert "simcuda backend, a bucket on cpu (" in str(error.value)
    assert "tensors: 2, float32/float32" in str(error.value)
    assert "the first one of shape (4, 5) in group 0): " in str(error.value)
    assert f"{said}: cudaErrorLaunchOutOfResources: too many resources" in str(error.value)
    optimizer.step()
    check(Problem(case, shapes))


def test_a_device_that_does_not_tell_what_it_can_is_an_error_of_its_bucket(simulator):
    optimizer, _ = started(ADAFACTOR, [(64, 64)])
    simulator.inject_error(INVALID_VALUE, "cudaDeviceGetAttribute")
    with pytest.raises(RuntimeError, match="cudaDeviceGetAttribute: cudaErrorInvalidValue"):
        optimizer.step()
    optimizer.step()


def test_an_error_leaves_nothing_behind_for_the_next_call_of_cuda(simulator):
    """A later cudaGetLastError, by another library or our next launch, does not see our error."""
    optimizer, params = started(ADAMW, [(4, 5)])
    simulator.inject_error(INVALID_VALUE)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        optimizer.step()
    before = [param.detach().clone() for param in params]
    for _ in range(3):
        optimizer.step()
    assert simulated()[0].why_unusable(0) == ""
    assert all(not torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_a_device_without_code_for_it_is_refused_with_the_reason(simulator):
    optimizer, _ = started(ADAMW, [(4, 5)])
    optimizer.step()
    backend, bucket = backends.BACKENDS["simcuda"], optimizer._plan.buckets[0]
    said = "its kernels were built for unknown architectures; CUDA .*: cudaErrorNoKernelImageForDev"
    simulator.inject_error(NO_CODE, "cudaFuncGetAttributes")
    with pytest.raises(RuntimeError, match=f"simcuda backend: cpu cannot be used: {said}"):
        backend.prepare(bucket)
    simulator.inject_error(NO_CODE, "cudaFuncGetAttributes")
    assert re.match(said, backend.why_absent())
    assert backend.why_absent() == ""


def plain_bucket(rule, kind=0, codes=(0, 0, 0, 0), fields=5, device=0, companions=None, noise=0):
    """A bucket of the module itself."""
    beside = companions or len(codes) * [0]
    return simulated()[0].Bucket(
        cuda.RULE_IDS[rule], False, kind, list(codes), beside, fields, 7, device, noise
    )


def test_kernels_are_loaded_when_a_bucket_is_made(simulator):
    """Not at their first launch, which may be in a capture."""
    adamw = plain_bucket("adamw")
    simulator.inject_error(NO_CODE, "cudaFuncGetAttributes")
    said = "ELEMENTWISE could not be loaded: cudaErrorNoKernelImageForDevice"
    with pytest.raises(RuntimeError, match=said):
        adamw.add(cuda.UNITS.index("ELEMENTWISE"), 0, False, 0, 1)
    adamw.add(cuda.UNITS.index("ELEMENTWISE"), 0, False, 0, 1)


def test_the_device_of_the_tensors_is_made_current(simulator):
    """The simulator has no second device, so it refuses."""
    elsewhere = plain_bucket("adamw", device=1)
    said = "cudaSetDevice to device 1: cudaErrorInvalidDevice"
    with pytest.raises(RuntimeError, match=said):
        elsewhere.add(cuda.UNITS.index("ELEMENTWISE"), 0, False, 0, 1)


def test_a_driver_that_is_too_old_or_absent_is_no_exception(simulator):
    module = simulated()[0]
    simulator.inject_error(TOO_OLD, "cudaGetDeviceCount")
    assert module.device_count() == 0
    assert module.device_count() > 0
    simulator.inject_error(TOO_OLD, "cudaGetDevice")
    reason = module.why_unusable(0)
    assert "cudaErrorInsufficientDriver: CUDA driver version is insufficient" in reason
    assert "device 7: cudaErrorInvalidDevice" in module.why_unusable(7)


def test_the_module_itself_refuses_what_no_launch_can_be():
    module = simulated()[0]
    kinds = {name: index for index, name in enumerate(cuda.UNITS)}
    adamw = plain_bucket("adamw")
    for count in (0, -1, 2**31):
        with pytest.raises(ValueError, match=f"ELEMENTWISE has {count} entries.* 1 to 2147483647"):
            adamw.add(kinds["ELEMENTWISE"], 0, False, 0, count)
    adamw.add(kinds["ELEMENTWISE"], 0, False, 0, 2**31 - 1)
    with pytest.raises(ValueError, match="too many slots"):
        plain_bucket("adamw", codes=20 * [0])
    with pytest.raises(ValueError, match="too many scalars for a launch"):
        adamw.launch(0, 0, 0, 0, 0, 0, module.VALUES + 1)
    for kind, fields in ((0, 4), (1, 9), (2, 5)):
        said = f"rows of {fields} numbers does not belong to 4 slots"
        with pytest.raises(ValueError, match=said):
            plain_bucket("adafactor", kind=kind, fields=fields)
    factored = plain_bucket("adafactor", kind=1, fields=8)
    with pytest.raises(ValueError, match="no kernel for ELEMENTWISE of this rule"):
        factored.add(kinds["ELEMENTWISE"], 0, False, 0, 1)


@pytest.mark.parametrize(
    ("kind", "codes", "companions", "said"),
    [
        (0, [0, 1, -1, 3], [], "slot 2 has the code -1, but kernels know 0 .float32.*up to 9"),
        (0, [0, 1, 10, 3], [], "slot 2 has the code 10, but kernels know"),
        (0, [5, 1, 1, 1], [], "slot 0 has the code 5, which does not fit its companion"),
        (0, [1, 1, 1, 1], [4, 0, 0, 0], "slot 0 has the code 1, which does not fit its companion"),
        (0, [4, 1, 1, 1], [], "slot 0 has the code 4, but there is no noise"),
        (0, [8, 1, 1, 1], [4, 0, 0, 0], "slot 0 has the code 8, and no kernel knows it there"),
        (0, [1, 5, 1, 1], [0, 4, 0, 0], "slot 1 has the code 5, and no kernel knows it there"),
        (0, [1, 1, 5, 1], [0, 0, 4, 0], "slot 2 has the code 5, and no kernel knows it there"),
        (1, [1, 1, 8, 0], [0, 0, 4, 0], "slot 2 has the code 8, and no kernel knows it there"),
        (2, [1, 1, 0, 8], [0, 0, 0, 4], "slot 3 has the code 8, and no kernel knows it there"),
    ],
)
def test_the_module_itself_refuses_storage_that_no_kernel_knows(kind, codes, companions, said):
    cells = len(codes) + sum(place > 0 for place in companions) + (1, 4, 2)[kind]
    with pytest.raises(ValueError, match=said):
        plain_bucket("adafactor", kind, codes, cells, companions=companions)


# Tensors of which only the end exists. The table holds addresses and sizes of much larger ones, and
# only the units at their end are launched.


def pretend_larger(monkeypatch, slots, sizes, everyone=()):
    """Moves the addresses of a bucket's tensor back by the number of elements in `slots`, and adds
    `sizes` to the sizes in its table. All units of the kinds in `everyone` are launched."""
    ends = {}

    def prepare(self, bucket):
        for k, elements in enumerate(slots):
            bucket.table[0, k] -= elements * bucket.dtypes[k].itemsize
        for place, more in sizes.items():
            whole = bucket.table[0, place] + more
            ends.update(first=more, whole=int(whole))
            bucket.table[0, place] = whole
        assert slots[0] > 2**31
        return real_prepare(self, bucket)

    def add(self, unit, width, aligned, entries):
        first = len(entries) * ends["first"] // ends["whole"] * (unit not in everyone)
        assert unit in everyone or first
        if unit == "UPDATE":  # its entries are in reverse order
            entries = entries.flip(0)
        real_add(self, unit, width, aligned, entries[first:])

    real_prepare, real_add = cuda.CudaBackend.prepare, cuda.CudaLauncher._add
    monkeypatch.setattr(cuda.CudaBackend, "prepare", prepare)
    monkeypatch.setattr(cuda.CudaLauncher, "_add", add)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each([ADAMW, CASE["adamw-amsgrad"]])
def test_elementwise_rules_behind_2_to_the_31_elements(case, dtype, monkeypatch):
    before = 3 * 2**30
    problem = Problem(case, [(9001,)], (dtype,), steps=1)
    expected = problem.run("reference")
    slots = 4 + (case is not ADAMW)
    pretend_larger(monkeypatch, slots * [before], {-1: before})
    assert_same(*problem.run("simcuda"), *expected)


def adafactor_step(p, g, matrices, matrix_rows, elements):
    """The first step of transformers' Adafactor on the last rows of `matrices`, whose other numbers
    are zeros."""
    square = g * g + 1e-30
    if g.dim() == 1:
        u = g / square.sqrt()
    else:
        row, col = square.mean(-1, keepdim=True), square.sum(-2, keepdim=True) / matrix_rows
        u = g / (row / (row.sum(-2, keepdim=True) / matrix_rows)).sqrt() / col.sqrt()
    u /= max(1.0, math.sqrt(u.square().sum() / elements))
    scale = max(1e-3, math.sqrt(p.square().sum() / elements))
    return p - 1e-2 * scale * u


FAR = {
    # Shape, elements before it in parameter, gradient and moments, sizes in the table.
    "a vector": ((20_000,), [2**32, 2**32, 2**32], {-1: 2**32}, (1, 1)),
    "rows": ((200, 4096), [2**33, 2**33, 2**21, 0], {-2: 2**21}, (1, 2**21 + 200)),
    "a batch": ((3, 64, 64), [2**32, 2**32, 2**26, 2**26], {-3: 2**20}, (2**20 + 3, 64)),
    "tiny matrices": ((600, 4, 4), [2**32, 2**32, 2**30, 2**30], {-3: 2**28}, (2**28 + 600, 4)),
}


@pytest.mark.usefixtures("scratch_of_zeros")
@pytest.mark.parametrize("name", sweep(FAR, [name for name in FAR if name != "rows"]))
def test_adafactor_behind_2_to_the_31_elements(name, monkeypatch):
    shape, slots, sizes, (matrices, rows) = FAR[name]
    problem = Problem(ADAFACTOR, [shape], steps=1)
    params = problem.start()
    problem._give_gradients(params, 0, False)
    p, g = params[0].detach().double(), params[0].grad.double()
    elements = p.numel() + slots[0]
    expected = adafactor_step(p, g, matrices, rows, elements)
    everyone = ("FINISH", "STORE_RMS", *(["COLUMNS"] if name == "rows" else []))
    pretend_larger(monkeypatch, slots, sizes, everyone)
    _, (found,) = problem.train(params, "simcuda")
    change = (expected - p).abs().max()
    assert change > 0
    assert (found - expected).abs().max() <= 1e-4 * change + 1e-7 * p.abs().max()
