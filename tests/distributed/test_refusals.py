"""Bad input: every process gets an error that names the parameter and the way out, nothing has
changed, and nobody waits. A message that never came would be an error after 30 s."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from tests.support.cases import same_bits
from tests.support.processes import on_processes
from tests.support.sharded import as_placed, case_of, layout, mesh_of, numbers, place

SHAPES = [(9, 6), (4, 12), (7,), (6, 5)]
NAMES = ["adamw", "adafactor", "hf-adafactor", "hf-adafactor-momentum"]
FACTORED = NAMES[1:]
each_case = pytest.mark.parametrize("name", NAMES)
each_factored = pytest.mark.parametrize("name", FACTORED)


class Training:
    """Sharded parameters with gradients, after one step."""

    def __init__(self, name, placed="rows", steps=1, groups=None):
        mesh, placements = layout(placed)
        self.params = [
            torch.nn.Parameter(place(number.float(), mesh, placements))
            for number in numbers(SHAPES, 0)
        ]
        self.optimizer = case_of(name).make(self.params if groups is None else groups(self.params))
        self.give_gradients()
        for _ in range(steps):
            self.optimizer.step()

    def give_gradients(self):
        for param, number in zip(self.params, numbers(SHAPES, 1), strict=False):
            param.grad = as_placed(number.float(), param)

    def local(self):
        """Copies of what is here: parameters, states, counters."""
        found = [param.to_local().detach().clone() for param in self.params]
        for param in self.params:
            for value in self.optimizer.state[param].values():
                own = value.to_local() if isinstance(value, DTensor) else torch.as_tensor(value)
                found.append(own.clone())
        return found

    def errors(self):
        """The error of the step in each process, empty where there is none."""
        before, said = self.local(), ""
        try:
            self.optimizer.step()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        answers = [None] * dist.get_world_size()
        dist.all_gather_object(answers, said)
        after = self.local()
        assert not all(answers) or all(map(same_bits, before, after)), "something has changed"
        return answers

    def assert_refused(self, *texts):
        """Asserts that all processes refuse the step with such an error, and can go on."""
        for rank, said in enumerate(self.errors()):
            for text in texts:
                assert text in said, f"rank {rank}: {said or 'no error'}"
        self.assert_goes_on()

    def assert_goes_on(self):
        self.give_gradients()
        before = [param.to_local().detach().clone() for param in self.params]
        self.optimizer.step()
        for param, old in zip(self.params, before, strict=True):
            own = param.to_local()
            assert own.numel() == 0 or not same_bits(own, old)


@on_processes(2)
@each_case
def test_a_gradient_that_is_not_summed_yet_is_refused(name):
    training = Training(name)
    param = training.params[1]
    own = torch.zeros(param.shape)
    param.grad = DTensor.from_local(own, param.device_mesh, [Partial()], run_check=False)
    training.assert_refused(
        "parameter 1 of group 0 (shape (4, 12)", "its gradient has placements (Partial(sum),)",
        ".redistribute(placements=...) first",
    )  # fmt: skip


@on_processes(2)
@each_case
def test_a_parameter_that_is_a_partial_sum_is_refused(name):
    mesh = mesh_of(2)
    own = DTensor.from_local(torch.ones(4, 6), mesh, [Partial()], run_check=False)
    param = torch.nn.Parameter(own)
    param.grad = DTensor.from_local(torch.ones(4, 6), mesh, [Partial()], run_check=False)
    optimizer = case_of(name).make([param])
    with pytest.raises(TypeError, match=r"parameter 0 .* the parameter has placements .*Partial"):
        optimizer.step()
    assert not optimizer.state and torch.equal(param.to_local(), torch.ones(4, 6))


@on_processes(4)
@each_case
@pytest.mark.parametrize("other", ["placements", "mesh"])
def test_a_gradient_that_lies_otherwise_is_refused(name, other):
    training = Training(name)
    number = numbers(SHAPES, 1)[0].float()
    mesh = mesh_of(4) if other == "placements" else mesh_of(2, 2)
    placed = (Shard(1),) if other == "placements" else (Shard(0), Replicate())
    param = training.params[0]
    param.grad = place(number, mesh, placed)
    training.assert_refused("parameter 0 of group 0", "Redistribute the gradient first")


@on_processes(2)
@each_case
def test_a_plain_gradient_of_a_sharded_parameter_is_refused(name):
    training = Training(name)
    training.params[3].grad = torch.ones(SHAPES[3])
    training.assert_refused("parameter 3 of group 0", "Set .grad to a DTensor")


@on_processes(2, 4)
@each_factored
@pytest.mark.parametrize("placed", ["rows", "cols"])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_gradient_that_one_process_lacks_is_refused_everywhere(name, placed, steps):
    training = Training(name, placed, steps)
    if dist.get_rank() == 1:
        training.params[0].grad = None
    training.assert_refused(
        "parameter 0 of group 0 (shape (9, 6)",
        "has no gradient on rank 1",
        "set its .grad to zeros",
    )


@on_processes(2, 4)
@each_factored
@pytest.mark.parametrize("steps", [0, 1])
def test_a_process_without_any_gradient_is_named_everywhere(name, steps):
    training = Training(name, steps=steps)
    if dist.get_rank() == 1:
        for param in training.params:
            param.grad = None
    training.assert_refused("parameter 0 of group 0", "has no gradient on rank 1")


@on_processes(4)
@each_factored
@pytest.mark.parametrize("placed", ["hsdp", "rows-cols", "rows-rows"])
def test_a_gradient_that_one_process_of_two_dimensions_lacks_is_refused_everywhere(name, placed):
    training = Training(name, placed)
    if dist.get_rank() == 3:
        training.params[0].grad = None
    said = training.errors()
    ranks = range(4) if placed != "hsdp" else (2, 3)  # replicas share no sums
    for rank in ranks:
        assert "parameter 0 of group 0" in said[rank], f"rank {rank}: {said[rank] or 'no error'}"
        assert "has no gradient on rank 3" in said[rank]
    if placed != "hsdp":
        training.assert_goes_on()


@on_processes(4)
@each_factored
def test_who_shares_only_the_last_sums_is_told_too(name):
    """Ranks 0 and 1 share sums of parameter 0, ranks 1 and 3 those of parameter 1."""
    mesh = mesh_of(2, 2)
    training = Training(name, "rows-cols", steps=0)
    spread = [(Replicate(), Shard(1)), (Shard(0), Replicate())]
    training.params[:2] = [
        torch.nn.Parameter(place(number.float(), mesh, own))
        for number, own in zip(numbers(SHAPES, 0), spread, strict=False)
    ]
    training.optimizer = case_of(name).make(training.params[:2])
    training.params = training.params[:2]
    training.give_gradients()
    training.optimizer.step()
    if dist.get_rank() == 3:
        training.params[1].grad = None
    training.assert_refused("parameter 1 of group 0", "has no gradient on rank 3")


@on_processes(2, 4)
@each_factored
def test_parameters_in_another_order_are_refused_everywhere(name):
    def turned(params):
        return params[::-1] if dist.get_rank() == 1 else params

    training = Training(name, steps=0, groups=turned)
    for said in training.errors():
        assert "ranks 0 and 1" in said and "in another order" in said, said or "no error"
        assert "Give every process the same groups" in said


@on_processes(2)
@each_factored
def test_groups_in_another_order_are_refused_everywhere(name):
    def grouped(params):
        groups = [{"params": params[:2]}, {"params": params[2:]}]
        return groups[::-1] if dist.get_rank() == 1 else groups

    training = Training(name, steps=0, groups=grouped)
    for said in training.errors():
        assert "ranks 0 and 1" in said and "or in other groups" in said, said or "no error"


@on_processes(2, 4)
@each_factored
@pytest.mark.parametrize("steps", [0, 1])
def test_an_error_of_one_process_is_told_to_all(name, steps):
    training = Training(name, steps=steps)
    (group,) = training.optimizer.param_groups
    good = dict(group)
    if dist.get_rank() == 1:
        group.update(lr=-1.0, relative_step=False) if "hf" in name else group.update(lr=-1.0)
    said = training.errors()
    for rank, own in enumerate(said):
        assert "lr" in own and (rank == 1 or "rank 1 refused this step" in own), own or "no error"
    group.update(good)
    training.assert_goes_on()


@on_processes(2)
@each_factored
def test_a_state_that_is_damaged_in_one_process_is_told_to_all(name):
    training = Training(name)
    param = training.params[0]
    key = next(key for key in training.optimizer.state[param] if "row" in key)
    state = training.optimizer.state[param][key]
    if dist.get_rank() == 1:
        training.optimizer.state[param][key] = whole_of_local(state)
    for rank, own in enumerate(training.errors()):
        assert f"state '{key}'" in own and (rank == 1 or "rank 1 refused" in own), own


def whole_of_local(state):
    return state.to_local().clone()
