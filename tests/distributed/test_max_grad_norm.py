"""max_grad_norm in real processes: one norm of all gradients, wherever their parts are."""

import contextlib
import math

import pytest
import torch
import torch.distributed as dist

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
    run.check()


@on_processes(4)
@pytest.mark.parametrize("placed", ["hsdp", "rows-cols", "rows-rows"])
@pytest.mark.parametrize("name", NAMES)
def test_replicated_parts_count_once_and_what_is_split_twice_is_whole(name, placed):
    run = sharded_run(name, placed)
    for _ in range(2):
        run.step()
        assert run.optimizer.grad_norm.item() == pytest.approx(norm(run.one), rel=1e-12)
    run.check()


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
    own = norm([p for p in run.sharded if p.grad is not None][:0])
    for param in run.sharded[:-1]:
        if param.grad is not None:
            own += float(param.grad.to_local().double().square().sum())
    total = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(total)
    if dist.get_rank() == 0:  # the plain one is here alone
        total += run.sharded[-1].grad.double().square().sum()
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
@pytest.mark.parametrize("kind", ["fsdp", "fsdp1"])
def test_models_of_frameworks_have_torchs_norm(kind):
    own = sharded(kind)
    optimizer = AdamW(own.model.parameters(), max_grad_norm=1e-3)
    own.loss(0).backward()
    if kind == "fsdp1":
        expected = own.model.clip_grad_norm_(1e9)
    else:
        expected = torch.nn.utils.clip_grad_norm_(own.model.parameters(), 1e9).full_tensor()
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(float(expected), rel=1e-5)
