"""Low-precision storage of sharded parameters: the bits do not depend on who has which part."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

from fusedstep.optim.masters import master_of
from fusedstep.plan.whole_places import places_of
from tests.support.cases import same_bits
from tests.support.processes import on_layouts, on_processes
from tests.support.sharded import (
    as_placed,
    case_of,
    gradient,
    layout,
    mesh_of,
    numbers,
    place,
    whole,
)
from tests.support.stored_cases import BF16, F16, F32, STORED, fits
from tests.support.sweeps import sweep

# Matrices whose states have 8 bits, also if columns are split in two; others.
SHAPES = [(64, 256), (40, 512), (37, 21), (5, 4, 6), (16, 8, 256), (70,), (3,), ()]
LAYOUTS = [
    *((2, name) for name in ("rows", "cols", "last")),
    *((4, name) for name in ("rows", "hsdp", "rows-rows", "rows-cols")),
]
each_layout = on_layouts(*sweep(LAYOUTS, [LAYOUTS[1], LAYOUTS[3], LAYOUTS[6]]))
EXACT = [stored for stored in STORED if stored.dtype != F16]
OF_ADAFACTOR = [stored for stored in EXACT if fits(case_of("adafactor"), stored)]


def gathered(tensor):
    """All of a tensor. gloo and NCCL know no int16."""
    if not (isinstance(tensor, DTensor) and tensor.dtype == torch.int16):
        return whole(tensor)
    facts = {"shape": tensor.shape, "stride": tensor.stride()}
    own = tensor.to_local().view(torch.float16)
    as_float = DTensor.from_local(
        own, tensor.device_mesh, tensor.placements, run_check=False, **facts
    )
    return as_float.full_tensor().view(torch.int16)


class Pair:
    """Sharded parameters, and in every process the same in one piece."""

    def __init__(self, case, name, stored, shapes=SHAPES):
        mesh, placements = layout(name)
        made = [number.to(stored.dtype) for number in numbers(shapes, 0)]
        self.sharded = [torch.nn.Parameter(place(own, mesh, placements)) for own in made]
        self.one = [torch.nn.Parameter(own.clone()) for own in made]
        self.case, self.stored, self.steps = case, stored, 0
        self.optimizers = [self.make(self.sharded), self.make(self.one)]

    def make(self, params):
        return self.case.make(params, **self.stored.options)

    def step(self, count):
        for _ in range(count):
            grads = numbers([param.shape for param in self.one], 1000 + self.steps)
            for number, param, one in zip(grads, self.sharded, self.one, strict=True):
                one.grad = gradient(number, self.steps).to(one.dtype)
                param.grad = as_placed(one.grad, param)
            for optimizer in self.optimizers:
                optimizer.step()
            self.steps += 1

    def tensors(self):
        """(name, sharded, in one piece) of parameters and states."""
        for index, (param, one) in enumerate(zip(self.sharded, self.one, strict=True)):
            yield f"parameter {index}", param, one
            states = [own.state[p] for own, p in zip(self.optimizers, (param, one), strict=True)]
            assert states[0].keys() == states[1].keys()
            for key, value in states[0].items():
                if isinstance(value, torch.Tensor):
                    yield f"parameter {index}: {key}", value, states[1][key]


@each_layout
@pytest.mark.parametrize("stored", sweep(EXACT, EXACT[1:2] + EXACT[3:4] + EXACT[9:11]), ids=str)
def test_an_elementwise_rule_has_the_bits_of_one_process(stored, name):
    pair = Pair(case_of("adamw"), name, stored)
    pair.step(3)
    for what, own, one in pair.tensors():
        assert same_bits(gathered(own), one), what


@each_layout
@pytest.mark.parametrize(
    "stored", sweep(OF_ADAFACTOR, OF_ADAFACTOR[:1] + OF_ADAFACTOR[3:4]), ids=str
)
def test_adafactor_has_the_masters_and_the_noise_of_one_process(stored, name):
    pair = Pair(case_of("adafactor"), name, stored)
    pair.step(5)
    for param, one in zip(pair.sharded, pair.one, strict=True):
        states = [own.state[p] for own, p in zip(pair.optimizers, (param, one), strict=True)]
        found, expected = whole(master_of(param, states[0])), master_of(one, states[1])
        if stored.dtype == F32 or stored.options.get("master_weights") is True:
            assert (found - expected).abs().max() <= 2e-6 * expected.abs().max().clamp(min=1e-3)
        else:  # a sum in another order may send a number to its other neighbour
            assert (found != expected).float().mean() < 0.01


@on_processes(4)
def test_columns_that_split_a_block_are_refused():
    mesh = mesh_of(4)
    param = torch.nn.Parameter(place(torch.ones(64, 256), mesh, (Shard(1),)))
    param.grad = place(torch.ones(64, 256), mesh, (Shard(1),))
    optimizer = case_of("adamw").make([param], state_dtype="int8")
    with pytest.raises(
        ValueError, match=r"state_dtype='int8'.* has 64 numbers, .* multiple of 128"
    ):
        optimizer.step()
    assert not optimizer.state


def whole_place(row, i):
    first, cols, row_stride, rows, matrix_stride = row
    run = i // cols
    matrix = run // rows
    return first + matrix * matrix_stride + (run - matrix * rows) * row_stride + i - run * cols


@on_processes(4)
def test_places_of_real_shards():
    """Each number of these tensors is its own place in the whole."""
    mesh = mesh_of(2, 2)
    layouts = [
        (Shard(0), Shard(0)),
        (Shard(0), Shard(1)),
        (Shard(1), Shard(0)),
        (Shard(2), Shard(0)),
    ]
    layouts += [(Replicate(), Shard(1)), (Shard(1), Shard(1))]
    for shape in ((8, 12), (7, 5), (4, 6, 10), (3, 5, 7)):
        for placements in layouts:
            if any(getattr(own, "dim", 0) >= len(shape) for own in placements):
                continue
            full = torch.arange(float(torch.Size(shape).numel())).view(shape)
            assert_places(torch.distributed.tensor.distribute_tensor(full, mesh, placements))


@on_processes(4)
def test_places_of_fsdp2_over_tensor_parallelism():
    """FSDP2 divides what tensor parallelism has left: a strided shard."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = torch.distributed.device_mesh.init_device_mesh(
        mesh_of(4).device_type, (2, 2), mesh_dim_names=("dp", "tp")
    )
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Linear(16, 10))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.arange(float(param.numel())).view(param.shape))
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    parallelize_module(model, mesh["tp"], plan)
    fully_shard(model, mesh=mesh["dp"])
    for param in model.parameters():
        assert isinstance(param, DTensor)
        assert_places(param)


def assert_places(param):
    row, own = places_of(param), param.to_local()
    numbers_here = own.detach().contiguous().flatten().tolist()
    assert [whole_place(row, i) for i in range(own.numel())] == numbers_here


@on_processes(2, 4)
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_masters_of_sharded_models(dtype):
    """They come out sharded, and go in sharded or whole."""
    mesh = mesh_of(dist.get_world_size())
    model = torch.nn.Linear(24, 16, dtype=dtype)
    full = [number.float() for number in numbers([(16, 24), (16,)], 3)]
    for name, number in zip(("weight", "bias"), full, strict=True):
        own = place(number.to(dtype), mesh, (Shard(0),))
        setattr(model, name, torch.nn.Parameter(own))
    optimizer = case_of("adamw").make(model.parameters(), master_weights=True)
    placed = [place(number, mesh, (Shard(0),)) for number in full]
    for given in (placed, full):
        masters = dict(zip(("weight", "bias"), given, strict=True))
        optimizer.load_master_state_dict(model, masters)
        saved = optimizer.master_state_dict(model)
        for name, number in zip(("weight", "bias"), full, strict=True):
            assert saved[name].dtype == F32
            assert same_bits(whole(saved[name]), number)
            assert (whole(getattr(model, name)).float() - number).abs().max() < 0.02
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
        for param in model.parameters():
            master_of(param, optimizer.state[param])


@on_processes(2)
@pytest.mark.parametrize("stored", sweep(EXACT, EXACT[10:11]), ids=str)
def test_state_dicts_of_shards(stored):
    pair = Pair(case_of("adamw"), "rows", stored)
    pair.step(2)
    saved = copy.deepcopy(pair.optimizers[0].state_dict())
    again = pair.make(pair.sharded)
    again.load_state_dict(saved)
    pair.optimizers[0] = again
    pair.step(2)
    for what, own, one in pair.tensors():
        assert same_bits(gathered(own), one), what
