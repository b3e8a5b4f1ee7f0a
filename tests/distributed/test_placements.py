"""A step of sharded parameters is the step of one process: elementwise rules bit for bit, Adafactor
up to the order of its sums."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard

from fusedstep import backends
from tests.support.cases import DTYPES, NUMBERS, same_bits
from tests.support.processes import DEVICE, on_layouts, on_processes
from tests.support.rule_cases import ELEMENTWISE, FACTORED
from tests.support.sharded import SHAPES, Run, layout, mesh_of, numbers, place, whole
from tests.support.sweeps import sweep

OF_DEVICE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton")}[DEVICE]
BACKENDS = [name for name in OF_DEVICE if not backends.BACKENDS[name].why_absent()]
FAST = BACKENDS[0]
# Two processes, and what only four can have.
LAYOUTS = [
    *((2, name) for name in ("rows", "cols", "last", "replicated")),
    *((4, name) for name in ("rows", "hsdp", "rows-cols", "rows-rows")),
]
each_layout = on_layouts(*sweep(LAYOUTS, [*LAYOUTS[:3], (4, "hsdp"), (4, "rows-cols")]))

USUAL = [case for case in FACTORED if case.name in ("adafactor", "hf-adafactor-momentum")]

# Relative to the update of 20 steps: sums are added up in another order. In a warm-up the update is
# so small that rounding the parameter in each step is a larger error.
APART, SHARE_OF_ROUNDING = 2e-6, 0.1


def params_of(name, dtypes=(torch.float32,), shapes=SHAPES):
    """Parameters of a layout, with the dtypes in turn. In the layout of that name some are plain
    tensors."""
    mesh, placements = layout(name)
    made = [
        number.to(dtypes[index % len(dtypes)]) for index, number in enumerate(numbers(shapes, 0))
    ]
    return [torch.nn.Parameter(place(own, mesh, placements)) for own in made]


def mixed_with_plain(params):
    return [
        torch.nn.Parameter(whole(param).detach().clone()) if index % 3 == 1 else param
        for index, param in enumerate(params)
    ]


def assert_near(run, is_wide=True):
    apart, error, error_of_one = run.errors()
    if is_wide:
        assert apart <= max(APART, SHARE_OF_ROUNDING * error_of_one), (
            f"{run.case}: {apart:.1e} from one process"
        )
    # Both errors are those of many roundings, but there are few tensors: they scatter.
    assert error <= 2 * error_of_one + 1e-7, (
        f"{run.case}: {error:.1e} from float64, one process {error_of_one:.1e}"
    )
    run.assert_replicas_agree()


@each_layout
@pytest.mark.parametrize("case", sweep(ELEMENTWISE, ELEMENTWISE[1:2]), ids=str)
def test_an_elementwise_rule_has_the_bits_of_one_process(case, name):
    for dtypes in ([torch.float32], [torch.bfloat16], DTYPES):
        run = Run(case, params_of(name, dtypes), FAST)
        run.step(4)
        run.assert_same_bits()
        run.assert_replicas_agree()


@each_layout
@pytest.mark.parametrize("case", sweep(FACTORED, USUAL), ids=str)
def test_adafactor_is_near_one_process_after_20_steps(case, name):
    run = Run(case, params_of(name), FAST)
    run.step(20)
    assert_near(run)


@on_layouts(*sweep([(2, "rows"), (2, "cols"), (4, "hsdp"), (4, "rows-cols")], [(2, "cols")]))
@pytest.mark.parametrize("case", sweep(FACTORED, USUAL), ids=str)
def test_adafactor_takes_any_mix_of_dtypes(case, name):
    """Where 16-bit parameters are rounded to a neighbour, one process is no nearer to float64."""
    for dtypes in ([torch.bfloat16], DTYPES):
        run = Run(case, params_of(name, dtypes), FAST)
        run.step(5)
        assert_near(run, is_wide=False)


@on_processes(2)
@pytest.mark.parametrize("name", ["rows", "cols"])
@pytest.mark.parametrize(
    "case", sweep([*ELEMENTWISE, *FACTORED], [ELEMENTWISE[0], *USUAL]), ids=str
)
def test_plain_tensors_take_part_beside_sharded_ones(case, name):
    run = Run(case, mixed_with_plain(params_of(name)), FAST)
    run.step(5)
    run.assert_same_bits() if case in ELEMENTWISE else assert_near(run)
    for param, one in zip(run.sharded, run.one, strict=True):
        if run.is_first and type(param) is torch.nn.Parameter:
            assert same_bits(param, one)


@each_layout
@pytest.mark.parametrize("case", sweep(FACTORED, FACTORED[:1]), ids=str)
def test_backends_have_the_same_bits(case, name):
    runs = [Run(case, params_of(name), backend) for backend in BACKENDS]
    for run in runs:
        run.step(2)
    for param, other in zip(*(run.sharded for run in runs), strict=True):
        assert same_bits(param.to_local(), other.to_local())


@on_processes(2, 4)
@pytest.mark.parametrize("case", [case for case in FACTORED if not case.ours.is_capped], ids=str)
def test_shards_of_whole_blocks_of_rows_have_the_bits_of_one_process(case):
    """Sums down the columns are those of blocks of 1,024 rows, added up in float64."""
    mesh = mesh_of(dist.get_world_size())
    rows = 1024 * mesh.size()
    params = [
        torch.nn.Parameter(place(number.float(), mesh, (Shard(0),)))
        for number in numbers([(rows, 24), (2 * rows, 7)], 0)
    ]
    run = Run(case, params, FAST)
    run.step(3)
    run.assert_same_bits()


@on_processes(4)
@pytest.mark.parametrize("case", FACTORED[:1], ids=str)
def test_a_gradient_that_all_processes_lack_is_no_harm(case):
    run = Run(case, params_of("rows"), FAST)
    run.step(2)
    before = [whole(param).detach().clone() for param in run.sharded]
    for index, param in enumerate(run.sharded):
        param.grad = None if index % 2 else param.grad
    run.optimizer.step()
    for index, (param, old) in enumerate(zip(run.sharded, before, strict=True)):
        assert index % 2 == 0 or same_bits(whole(param), old)
    for param in run.sharded:
        param.grad = None
    run.optimizer.step()


@on_processes(2)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [ELEMENTWISE[0], *USUAL], ids=str)
def test_states_of_shards_have_the_dtype_that_was_asked_for(case, state_dtype):
    params = params_of("cols", [torch.bfloat16, torch.float32])
    run = Run(case, params, FAST, {"state_dtype": state_dtype})
    run.step(3)
    run.assert_same_bits() if case in ELEMENTWISE else assert_near(run, is_wide=False)


@on_processes(2)
@pytest.mark.parametrize("case", [*ELEMENTWISE, *FACTORED], ids=str)
def test_states_are_spread_as_their_parameters(case):
    run = Run(case, params_of("rows"), FAST)
    run.step()
    for param in run.sharded:
        for key, value in run.optimizer.state[param].items():
            if key in NUMBERS:
                continue
            assert value.device_mesh == param.device_mesh
            is_column = run.case.ours.reduced.get(key) == -2 and param.dim() == 2
            assert value.placements == ((Replicate(),) if is_column else param.placements), key
