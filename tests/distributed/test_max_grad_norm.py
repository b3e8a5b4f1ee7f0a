"""max_grad_norm in real processes: one norm of all gradients, wherever their parts are."""

import contextlib
import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from fusedstep.optim import AdamW, declare_shard
from fusedstep.plan.exchange_layout import ExchangeError
from tests.support.cases import same_bits
from tests.support.processes import on_processes
from tests.support.sharded import Calls, Run, case_of, counted, gradient, layout, numbers, place
from tests.support.sharded_models import sharded

SHAPES = [(9, 6), (4, 12), (7,), (1, 5), (), (0,)]
NAMES = ["adamw", "adafactor", "hf-adafactor"]
LIMIT = 0.05


def sharded_run(name, placed, **options):
    """Some parameters are split as `placed` says, one is plain."""
    mesh, placements = layout(placed)
    params = [torch.nn.Parameter(place(n.float(), mesh, placements)) for n in numbers(SHAPES, 0)]
    params.append(torch.nn.Parameter(numbers([(5, 3)], 7)[0].float()))
    return Run(case_of(name), params, options={"max_grad_norm": LIMIT, **options})


def norm(params):
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in params))


def assert_near(run):
    """As in test_placements.py: sums are added up in another order. After a step or two the update
    is small, and the factor is rounded too."""
    apart, error, error_of_one = run.errors()
    assert apart <= max(1e-5, 0.1 * error_of_one), apart
    assert error <= 2 * error_of_one + 1e-6
    run.assert_replicas_agree()


def assert_same_everywhere(number):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, number)
    assert len(set(found)) == 1


@on_processes(2)
@pytest.mark.parametrize("placed", ["rows", "cols", "replicated"])
@pytest.mark.parametrize("name", NAMES)
def test_the_norm_is_that_of_one_process(name, placed):
    run = sharded_run(name, placed)
    for _ in range(3):
        run.step()
        found = run.optimizer.grad_norm
        assert found.shape == ()
        assert found.item() == pytest.approx(norm(run.one), rel=1e-12)
        assert_same_everywhere(found.item())
    assert_near(run)


@on_processes(4)
@pytest.mark.parametrize("placed", ["hsdp", "rows-cols", "rows-rows"])
@pytest.mark.parametrize("name", NAMES)
def test_replicated_parts_count_once_and_what_is_split_twice_is_whole(name, placed):
    run = sharded_run(name, placed)
    for _ in range(2):
        run.step()
        assert run.optimizer.grad_norm.item() == pytest.approx(norm(run.one), rel=1e-12)
    assert_near(run)


@on_processes(2)
def test_it_takes_one_message_and_none_without_shards():
    for placed, expected in (("rows", 1), ("replicated", 0)):
        run, calls = sharded_run("adamw", placed), Calls()
        run.step(2)
        with counted(calls):
            run.optimizer.step()
        assert len(calls.names) == expected


@on_processes(2)
def test_a_process_without_gradients_takes_part():
    run = sharded_run("adamw", "rows")
    run.step()
    if dist.get_rank() == 1:
        for param in run.sharded:
            param.grad = None
    total, alone = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for param in run.sharded:
        if param.grad is not None:
            is_split = isinstance(param, DTensor) and not param.placements[0].is_replicate()
            grad = param.grad.to_local() if isinstance(param, DTensor) else param.grad
            squares = grad.double().square().sum()
            total, alone = (total + squares, alone) if is_split else (total, alone + squares)
    dist.all_reduce(total)
    total += alone  # what is not split has a gradient in one process only
    run.optimizer.step()
    assert run.optimizer.grad_norm.item() == pytest.approx(float(total.sqrt()), rel=1e-12)


@on_processes(2)
@pytest.mark.parametrize("name", ["adamw", "hf-adafactor"])
def test_a_process_that_refuses_the_step_lets_nobody_wait(name):
    for steps_before in (0, 1):
        run = sharded_run(name, "rows")
        run.step(steps_before)
        made = numbers([own.shape for own in run.first], 5)
        for param, number in zip(run.sharded, made, strict=True):
            param.grad = gradient(number, 0).float() if param is run.sharded[-1] else place(
                gradient(number, 0).float(), param.device_mesh, param.placements
            )  # fmt: skip
        if dist.get_rank() == 1:
            run.sharded[-1].grad = run.sharded[-1].grad.to_sparse()
            refused = pytest.raises(RuntimeError, match="sparse")
        else:  # AdamW exchanges nothing else, so the others do not hear of it
            refused = contextlib.nullcontext() if name == "adamw" else pytest.raises(ExchangeError)
        with refused:
            run.optimizer.step()
        run.sharded[-1].grad = torch.zeros(5, 3)
        run.optimizer.step()


@on_processes(2)
@pytest.mark.parametrize("name", NAMES)
def test_an_infinity_elsewhere_is_in_the_norm_of_all(name):
    run = sharded_run(name, "rows")
    run.step()
    before = [param.to_local().clone() for param in run.sharded[:-1]]
    if dist.get_rank() == 1:
        run.sharded[0].grad.to_local()[0, 0] = math.inf
    run.optimizer.found_inf = torch.tensor(float(dist.get_rank() == 1))
    run.optimizer.step()
    assert run.optimizer.grad_norm.item() == math.inf
    assert all(same_bits(p.to_local(), b) for p, b in zip(run.sharded, before, strict=False))


@on_processes(2)
@pytest.mark.parametrize("name", NAMES)
def test_declared_flat_shards_are_added_up(name):
    rank, sizes = dist.get_rank(), [(5, 6), (8,), (1, 3)]
    params, exact = [], 0.0
    for shape, number, grad in zip(sizes, numbers(sizes, 0), numbers(sizes, 1), strict=True):
        half = (number.numel() + 1) // 2
        cut = slice(rank * half, (rank + 1) * half)
        params.append(torch.nn.Parameter(number.flatten()[cut].float().clone()))
        params[-1].grad = grad.flatten()[cut].float().clone()
        declare_shard(params[-1], shape, rank * half)
        exact += float(grad.float().double().square().sum())
    optimizer = case_of(name).make(params, max_grad_norm=LIMIT)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(math.sqrt(exact), rel=1e-12)


@on_processes(2)
def test_models_of_fsdp2_have_torchs_norm():
    own = sharded("fsdp")
    optimizer = AdamW(own.model.parameters(), max_grad_norm=1e-3)
    own.loss(0).backward()
    expected = torch.nn.utils.clip_grad_norm_(own.model.parameters(), 1e9).full_tensor()
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(float(expected), rel=1e-5)


@on_processes(2)
@pytest.mark.parametrize("keeps_shapes", [True, False])
def test_models_of_fsdp1_have_its_norm_or_are_told_why_not(keeps_shapes):
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    model = FullyShardedDataParallel(
        net, use_orig_params=keeps_shapes, device_id=torch.device("cpu")
    )
    optimizer = AdamW(model.parameters(), max_grad_norm=1e-3)
    model(torch.ones(2, 7) * (1 + dist.get_rank())).square().sum().backward()
    if not keeps_shapes:
        with pytest.raises(RuntimeError, match=r"max_grad_norm: .* use_orig_params=True"):
            optimizer.step()
        return
    expected = model.clip_grad_norm_(1e9)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(float(expected), rel=1e-5)
