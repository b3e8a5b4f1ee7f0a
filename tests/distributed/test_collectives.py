"""How many collectives a step takes, and what they send."""

import pytest
import torch
import torch.distributed as dist

from tests.support.processes import on_processes
from tests.support.sharded import Calls, Run, case_of, layout, numbers, place

# Collectives of a step.
COUNTS = {
    "adamw": {"rows": 0, "cols": 0, "replicated": 0, "rows-cols": 0},
    "hf-adafactor": {"rows": 1, "hsdp": 1, "cols": 2, "replicated": 0},
    "hf-adafactor-momentum": {"rows": 1, "hsdp": 1, "cols": 2, "replicated": 0},
    "adafactor": {"rows": 2, "hsdp": 2, "cols": 2, "replicated": 0},
}
FEW, MANY = [(40, 24), (12,)], [(40, 24), (24, 40), (12,), (9, 8), (3,)] * 8


def run_of(case, name, shapes):
    mesh, placements = layout(name)
    made = [torch.nn.Parameter(place(n.float(), mesh, placements)) for n in numbers(shapes, 0)]
    return Run(case_of(case), made)


def collectives_of_a_step(case, name, shapes):
    run, calls = run_of(case, name, shapes), Calls()
    run.step(2)  # processes agree on the messages once
    run.step(1, calls)
    return run, calls


@on_processes(4)
@pytest.mark.parametrize(
    ("case", "name", "count"),
    [(case, name, count) for case, of in COUNTS.items() for name, count in of.items()],
)
def test_the_number_of_collectives_does_not_depend_on_the_number_of_tensors(case, name, count):
    for shapes in (FEW, MANY):
        _, calls = collectives_of_a_step(case, name, shapes)
        assert calls.names == ["all_reduce"] * count, f"{len(shapes)} tensors: {calls.names}"


@on_processes(2, 4)
@pytest.mark.parametrize("case", ["hf-adafactor", "adafactor"])
@pytest.mark.parametrize("name", ["rows", "cols"])
def test_a_step_sends_what_the_layout_says(case, name):
    run, calls = collectives_of_a_step(case, name, MANY)
    messages = run.optimizer._exchange_layout().messages
    assert calls.sent == [8 * message.length for message in messages]


@on_processes(2, 4)
@pytest.mark.parametrize("case", ["hf-adafactor", "adafactor"])
def test_the_bytes_are_those_of_columns_not_of_parameters(case):
    """Of rows that are split: two numbers a column, a few a tensor, in float64."""
    run, calls = collectives_of_a_step(case, "rows", MANY)
    numbers_sent = 0
    for shape in MANY:
        numbers_sent += 1  # how many processes have a gradient
        numbers_sent += 2 * shape[-1] + 2 if len(shape) > 1 else 2
    assert calls.sent[0] == 8 * numbers_sent
    if run.case.ours.is_capped:  # then sum u^2 of each matrix, and how many have a gradient
        assert calls.sent[1] == 8 * 2 * sum(len(shape) > 1 for shape in MANY)


@on_processes(2)
def test_the_count_sees_collectives_of_dtensors_operators():
    """A planted fault: a step that gathers a parameter."""
    run, calls = run_of("adamw", "rows", FEW), Calls()
    step = run.optimizer.step
    run.optimizer.step = lambda: (run.sharded[0].full_tensor(), dist.barrier(), step())
    run.step(1, calls)
    assert sorted(calls.names) == ["barrier", "by an operator"]
