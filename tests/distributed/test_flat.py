"""Flat shards in real processes: FSDP1 is known by itself, others are declared. Adafactor's step is
that of one process, and every error comes on all ranks."""

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fusedstep.optim import declare_shard, full_state_dict
from fusedstep.plan import flat
from fusedstep.plan.exchange_layout import ExchangeError
from tests.support.cases import each
from tests.support.flat import runs_of
from tests.support.processes import on_processes
from tests.support.rule_cases import FACTORED

FEW = [case for case in FACTORED if case.name in ("adafactor", "hf-adafactor-momentum")]
# Relative to the update of some steps. Sums are added up in another order.
APART = 2e-6


class Net(nn.Module):
    """Matrices whose runs end inside rows, batches of matrices, vectors, one number."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(33, 70)
        self.unit = nn.Sequential(nn.Linear(70, 300), nn.ReLU(), nn.Linear(300, 7))
        self.norm = nn.LayerNorm(7)
        self.batch = nn.Parameter(torch.zeros(2, 7, 5))
        self.scale = nn.Parameter(torch.ones(1))
        for param, number in zip(self.parameters(), numbers(self, 0), strict=True):
            param.data.copy_(0.1 * number)

    def forward(self, x):
        x = self.norm(self.unit(torch.relu(self.first(x))))
        return (torch.einsum("bi,kij->bkj", x, self.batch) * self.scale).square().mean()


def numbers(net, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in net.parameters()]


def fsdp(net, **options):
    """FSDP1 with a unit in a unit."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    options = {"use_orig_params": True, "device_id": torch.device("cpu"), **options}
    net.unit = FullyShardedDataParallel(net.unit, **options)
    return FullyShardedDataParallel(net, **options)


def step(sharded, optimizer, one, one_optimizer, seed):
    """A step of both with the same gradients: those of FSDP1 are sums over the ranks' batches."""
    sharded(torch.ones(4, 33)).backward()
    scale = 10.0 ** -(seed % 3)
    for own, param, number in zip(
        sharded.parameters(), one.parameters(), numbers(one, 1 + seed), strict=True
    ):
        param.grad = scale * number
        piece = flat.piece_of(own)
        if piece is None:  # FSDP1 left it whole
            own.grad.copy_(param.grad)
        elif piece.length:
            own.grad.copy_(param.grad.flatten()[piece.start : piece.start + piece.length])
        else:
            assert own.grad is None
    optimizer.step()
    one_optimizer.step()
    optimizer.zero_grad()


def assert_near(sharded, one, first):
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(sharded):
        for own, param, old in zip(sharded.parameters(), one.parameters(), first, strict=True):
            apart = (own - param).norm() / (param - old).norm()
            assert apart <= APART, f"{tuple(param.shape)}: {apart:.1e}"


@on_processes(2, 4)
@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"])
@each(FEW)
def test_fsdp1_with_original_parameters_makes_the_step_of_one_process(case, strategy):
    from torch.distributed.fsdp import ShardingStrategy

    one = Net()
    first = [param.detach().clone() for param in one.parameters()]
    sharded = fsdp(Net(), sharding_strategy=ShardingStrategy[strategy])
    optimizer, one_optimizer = case.make(sharded.parameters()), case.make(one.parameters())
    for seed in range(6):
        step(sharded, optimizer, one, one_optimizer, seed)
    assert_near(sharded, one, first)
    assert any(map(flat.piece_of, sharded.parameters())) == (strategy != "NO_SHARD")


@on_processes(2)
@each(FEW)
def test_whole_states_of_fsdp1_resume_in_one_process_and_in_fsdp1(case):
    one, sharded = Net(), fsdp(Net())
    optimizer, one_optimizer = case.make(sharded.parameters()), case.make(one.parameters())
    for seed in range(3):
        step(sharded, optimizer, one, one_optimizer, seed)
    saved = full_state_dict(optimizer)
    one_optimizer.load_state_dict(saved)
    for index, param in enumerate(one.parameters()):
        assert saved["state"][index].keys() == one_optimizer.state[param].keys()
    resumed = case.make(sharded.parameters())
    resumed.load_state_dict(copy.deepcopy(saved))  # loading does not copy
    first = [param.detach().clone() for param in one.parameters()]
    step(sharded, resumed, one, one_optimizer, 9)
    assert_near(sharded, one, first)


@on_processes(2)
@each(FEW)
def test_torchs_functions_for_checkpoints_are_refused_with_the_way_out(case):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.fsdp import FullyShardedDataParallel

    sharded = fsdp(Net())
    optimizer = case.make(sharded.parameters())
    with pytest.raises(RuntimeError, match=r"Use fusedstep\.optim\.full_state_dict"):
        FullyShardedDataParallel.optim_state_dict(sharded, optimizer)
    with pytest.raises(RuntimeError, match=r"Use fusedstep\.optim\.full_state_dict"):
        get_optimizer_state_dict(sharded, optimizer)


@on_processes(2)
@each(FEW)
def test_fsdp1_that_flattens_parameters_is_refused_on_every_rank(case):
    sharded = fsdp(Net(), use_orig_params=False)
    optimizer = case.make(sharded.parameters())
    sharded(torch.ones(4, 33)).backward()
    before = [param.detach().clone() for param in sharded.parameters()]
    with pytest.raises(RuntimeError, match=r"is a flat shard of FSDP1.*use_orig_params=True"):
        optimizer.step()
    assert all(map(torch.equal, before, sharded.parameters()))


SHAPES = [(33, 17), (2, 5, 7), (70,), (1, 40), (300, 260), (4, 3, 3, 3), (1,), (3, 1), (5, 0)]


class Declared:
    """A parameter list as ZeRO divides it: each rank has a run of each, which may be empty. The
    gradients and the parameters of one process are here too."""

    def __init__(self, dtype, shapes=SHAPES):
        generator = torch.Generator().manual_seed(0)
        self.whole = [
            nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes
        ]
        self.first = [param.detach().clone() for param in self.whole]
        size, rank = dist.get_world_size(), dist.get_rank()
        cuts = [(k + 0.3) / size for k in range(size - 1)]
        self.runs = [runs_of(param, tuple(cuts))[rank] for param in self.whole]
        self.own = [
            nn.Parameter(param.detach().flatten()[slice(*run)].clone())
            for param, run in zip(self.whole, self.runs, strict=True)
        ]
        for own, param, (start, _) in zip(self.own, self.whole, self.runs, strict=True):
            declare_shard(own, param.shape, start)

    def set_grads(self, seed):
        generator = torch.Generator().manual_seed(1 + seed)
        for own, param, run in zip(self.own, self.whole, self.runs, strict=True):
            number = torch.randn(param.shape, generator=generator) * 10.0 ** -(seed % 3)
            param.grad = number.to(param.dtype)
            own.grad = param.grad.flatten()[slice(*run)].clone()

    def joined(self):
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, [own.detach() for own in self.own])
        return [
            torch.cat(parts).view(param.shape)
            for param, parts in zip(self.whole, zip(*gathered, strict=True), strict=True)
        ]


@on_processes(2, 4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each(FEW)
def test_declared_pieces_make_the_step_of_one_process(case, dtype):
    params = Declared(dtype)
    optimizer, one = case.make(params.own), case.make(params.whole)
    for seed in range(6):
        params.set_grads(seed)
        optimizer.step()
        one.step()
    for found, param, old in zip(params.joined(), params.whole, params.first, strict=True):
        found, param, old = found.double(), param.double(), old.double()
        # A bfloat16 that is rounded the other way is 2^-8 apart: few may be.
        apart, bound = (found - param).norm(), APART if dtype == torch.float32 else 2**-8 / 4
        assert apart <= bound * (param - old).norm(), f"{tuple(param.shape)}: {apart:.1e}"


@on_processes(2, 4)
@each(FEW)
def test_a_step_takes_two_collectives(case):
    params = Declared(torch.float32)
    optimizer = case.make(params.own)
    calls = []
    with counted(calls):
        for seed in range(3):
            params.set_grads(seed)
            optimizer.step()
    assert calls == ["all_reduce", "all_reduce"] * 3


@contextlib.contextmanager
def counted(calls):
    real = dist.all_reduce

    def all_reduce(*arguments, **options):
        calls.append("all_reduce")
        return real(*arguments, **options)

    dist.all_reduce = all_reduce
    try:
        yield
    finally:
        dist.all_reduce = real


@on_processes(2)
@each(FEW)
def test_wrong_runs_and_missing_gradients_are_errors_on_every_rank(case):
    rank = dist.get_rank()
    params = Declared(torch.float32, [(33, 17), (8, 8)])
    (start, _), shape = params.runs[0], params.whole[0].shape
    if rank == 1:
        declare_shard(params.own[0], shape, start - 5)
    params.set_grads(0)
    optimizer = case.make(params.own)
    with pytest.raises(ExchangeError, match=r"parameter 0 of .*ranks 0 and 1 both hold element"):
        optimizer.step()
    declare_shard(params.own[0], shape, start)
    optimizer.step()
    if rank == 0:
        params.own[1].grad = None
    before = [own.detach().clone() for own in params.own]
    with pytest.raises(ExchangeError, match=r"parameter 1 of .*has no gradient on rank 0, but"):
        optimizer.step()
    assert all(map(torch.equal, before, params.own))


@on_processes(2)
def test_a_group_without_this_process_is_refused_at_the_call():
    first = dist.new_group([0])
    param = nn.Parameter(torch.zeros(3))
    if dist.get_rank() == 0:
        declare_shard(param, (2, 3), 0, first)
    else:
        with pytest.raises(ValueError, match="group should contain this process"):
            declare_shard(param, (2, 3), 0, first)
