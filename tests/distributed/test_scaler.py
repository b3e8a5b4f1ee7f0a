"""An infinity in one process's shard: all processes skip the step alike."""

import pytest
import torch
import torch.distributed as dist

from fusedstep.plan.exchange_layout import ExchangeError
from tests.support.cases import same_bits
from tests.support.processes import on_processes
from tests.support.sharded import Calls, Run, case_of, counted, layout, numbers, place, whole
from tests.support.sharded_models import sharded

SHAPES = [(9, 6), (4, 12), (7,)]


def sharded_run(name, placed="rows", **options):
    mesh, placements = layout(placed)
    params = [torch.nn.Parameter(place(n.float(), mesh, placements)) for n in numbers(SHAPES, 0)]
    return Run(case_of(name), params, options=options)


def counters(optimizer):
    return [float(state["step"]) for state in optimizer.state.values()]


def everything(run):
    """Copies of parameters and states, whole."""
    states = [run.optimizer.state[param] for param in run.sharded]
    values = [whole(v) for state in states for v in state.values()]
    return [torch.as_tensor(v).clone() for v in [*map(whole, run.sharded), *values]]


def assert_unchanged(run, before):
    assert all(map(same_bits, everything(run), before))


@on_processes(2, 4)
@pytest.mark.parametrize("name", ["adamw", "adafactor", "hf-adafactor"])
def test_found_inf_of_one_process_skips_the_step_everywhere(name):
    run = sharded_run(name)
    run.step(2)
    before = everything(run)
    for rank in range(dist.get_world_size()):
        run.optimizer.found_inf = torch.tensor(float(dist.get_rank() == rank))
        run.optimizer.step()
        assert_unchanged(run, before)
    run.optimizer.found_inf = torch.tensor(0.0)
    run.optimizer.step()
    assert counters(run.optimizer) == [3.0] * len(SHAPES)


@on_processes(4)
def test_found_inf_reaches_all_processes_of_two_dimensions():
    run = sharded_run("adamw", "rows-cols")
    run.step()
    before = everything(run)
    run.optimizer.found_inf = torch.tensor([float(dist.get_rank() == 3)])
    run.optimizer.step()
    assert_unchanged(run, before)


@on_processes(2)
def test_found_inf_may_be_a_dtensor():
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Partial

    run = sharded_run("adamw")
    run.step()
    before = everything(run)
    own, mesh = torch.tensor(float(dist.get_rank() == 1)), run.sharded[0].device_mesh
    run.optimizer.found_inf = DTensor.from_local(own, mesh, [Partial("max")], run_check=False)
    run.optimizer.step()
    assert_unchanged(run, before)


@on_processes(2)
@pytest.mark.parametrize("name", ["adamw", "hf-adafactor"])
def test_only_a_step_with_found_inf_adds_it_up(name):
    run, counts = sharded_run(name), []
    run.step(2)
    for found in (None, torch.zeros(())):
        run.optimizer.found_inf, calls = found, Calls()
        with counted(calls):
            run.optimizer.step()
        counts.append(len(calls.names))
    assert counts[1] == counts[0] + 1


@on_processes(2)
def test_plain_parameters_exchange_nothing_about_infinities():
    run = sharded_run("adamw", "replicated")
    run.optimizer.found_inf, calls = torch.zeros(()), Calls()
    run.step(1, calls)
    assert calls.names == []


@on_processes(2)
@pytest.mark.parametrize("name", ["adamw", "hf-adafactor"])
def test_a_found_inf_that_is_no_number_is_refused_and_nobody_waits(name):
    run = sharded_run(name)
    run.step()
    before = everything(run)
    is_wrong = dist.get_rank() == 1
    run.optimizer.found_inf = torch.zeros(2 if is_wrong else 1)
    if is_wrong or name != "adamw":  # AdamW exchanges nothing, so the others do not hear of it
        with pytest.raises((ValueError, ExchangeError), match="found_inf should be one number"):
            run.optimizer.step()
    else:
        run.optimizer.step()
    assert_unchanged(run, before)


@on_processes(2, 4)
@pytest.mark.parametrize(
    ("name", "options"),
    [("adamw", {}), ("adamw", {"fused": True}), ("adafactor", {}), ("hf-adafactor", {})],
)
def test_a_grad_scaler_skips_the_step_everywhere(name, options):
    own = sharded("fsdp")
    optimizer = case_of(name).make(own.model.parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(3):
        before = own.weights()
        scaler.scale(own.loss(step)).backward()
        if step == 1 and dist.get_rank() == 1:
            own.model.out.weight.grad.to_local()[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        changed = [key for key, w in own.weights().items() if not same_bits(w, before[key])]
        assert bool(changed) == (step != 1)
        assert scaler.get_scale() == (8.0 if step == 0 else 4.0)
    assert counters(optimizer) == [2.0] * len(own.named())
