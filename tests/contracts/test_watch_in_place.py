"""What the C++ watch reads in place of what Python would return: gradients, entries of state dicts,
versions. It must see the same changes."""

import pytest
import torch

from fusedstep import native
from fusedstep.plan import versions, watch

KEYS = ("exp_avg", "step")


class World:
    """Three parameters with gradients and states, and a native watch on them."""

    def __init__(self, params=None, keys=KEYS):
        self.params = params or [torch.nn.Parameter(torch.zeros(4, 3)) for _ in range(3)]
        for param in self.params:
            param.grad = torch.ones_like(param)
        counters = torch.zeros(len(self.params)).unbind()
        self.state = {
            param: {"step": step, "exp_avg": torch.zeros(4, 3), "note": "?", "factor": 0.5}
            for param, step in zip(self.params, counters, strict=True)
        }
        self.cells = torch.zeros(len(self.params), dtype=torch.int64)
        places = [cell.data_ptr() for cell in self.cells.unbind()]
        self.watch = watch.watch([self.params], self.state, keys, places)
        assert type(self.watch) is native.module.Watch
        assert self.check() == 0

    def check(self):
        return self.watch.check([self.params], self.state)

    @property
    def first(self):
        return self.state[self.params[0]]


def reinserted(world):
    world.first["exp_avg"] = world.first.pop("exp_avg")


def renamed(world):
    world.state[world.params[0]]["other"] = world.first.pop("exp_avg")


def another_entry(world):
    world.first["more"] = 1


def replaced_by_a_number(world):
    world.first["exp_avg"] = 1.0


def replaced_by_a_tensor_of_the_same_memory(world):
    world.first["exp_avg"] = world.first["exp_avg"].view(4, 3)


def replaced_by_nothing(world):
    world.first["exp_avg"] = None


def another_dict(world):
    world.state[world.params[0]] = dict(world.first)


def no_dict(world):
    world.state[world.params[0]] = 0


def counter_moves(world):
    world.first["step"].data = torch.zeros(())


def state_shrinks_in_place(world):
    world.first["exp_avg"].resize_(2, 3)


def state_gets_other_memory(world):
    world.first["exp_avg"].set_(torch.zeros(4, 3))


def memory_is_allocated_anew(world):
    world.first["exp_avg"].untyped_storage().resize_(4096)


def parameter_swapped(world):
    world.params[0].grad = None
    other = torch.nn.Parameter(torch.ones(4, 3))
    torch.utils.swap_tensors(world.params[0], other)
    world.params[0].grad = torch.ones(4, 3)


def offset_moves(world):
    world.params[0].data = torch.zeros(5, 3)[1:]


CHANGES = [
    reinserted, renamed, another_entry, replaced_by_a_number, replaced_by_nothing, another_dict,
    replaced_by_a_tensor_of_the_same_memory, no_dict, counter_moves, state_shrinks_in_place,
    state_gets_other_memory, memory_is_allocated_anew, parameter_swapped, offset_moves,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_needs_a_new_plan(change):
    world = World()
    change(world)
    assert world.check() == -1
    assert World(world.params).check() == 0


def test_entries_that_no_step_reads_may_change():
    world = World()
    world.first["note"] = torch.ones(3)
    world.first["factor"] = None
    assert world.check() == 0


def test_a_number_that_is_watched_is_compared_by_identity():
    world = World(keys=(*KEYS, "factor"))
    world.first["factor"] = float("0.25")
    assert world.check() == -1


def test_keys_are_told_apart_by_their_text_when_a_plan_is_made():
    """Keys from a checkpoint are equal to the class's own, and not the same objects."""
    world = World(keys=tuple("".join(list(key)) for key in KEYS))
    world.first["exp_avg"] = torch.zeros(4, 3)
    assert world.check() == -1


def test_a_gradient_from_backward_is_followed():
    """Such a gradient has no Python object yet."""
    world = World()
    for step in range(3):
        before = world.cells.tolist()
        kept = [param.grad for param in world.params]
        for param in world.params[step % 2 :]:
            param.grad = None
        sum((param * param).sum() for param in world.params[step % 2 :]).backward()
        result = world.check()
        after = [param.grad.data_ptr() for param in world.params]
        moved = [a != old.data_ptr() for a, old in zip(after, kept, strict=True)]
        assert result == sum(moved)
        for cell, a, old, has_moved in zip(world.cells.tolist(), after, before, moved, strict=True):
            assert cell == (a if has_moved else old)


class OwnGradient(torch.nn.Parameter):
    """A parameter that gives another gradient than the one that torch keeps."""

    other = None

    @property
    def grad(self):
        return self.other

    @grad.setter
    def grad(self, value):
        self.other = value


def test_a_type_with_its_own_gradients_is_asked():
    world = World([OwnGradient(torch.zeros(4, 3)) for _ in range(2)])
    torch.Tensor.grad.__set__(world.params[0], torch.ones(4, 3))
    assert world.check() == 0
    world.params[0].grad = None
    assert world.check() == watch.CAME_OR_WENT
    assert world.watch.present() == b"\0\1"


def test_a_parameter_that_never_had_a_gradient_gets_one():
    param = torch.nn.Parameter(torch.zeros(4, 3), requires_grad=False)
    layout = watch.Layout(torch.float32, torch.device("cpu"), torch.Size((4, 3)), (3, 1), False)
    cell = torch.zeros(1, dtype=torch.int64)
    own = watch.watch([[param]], {}, (), [cell.data_ptr()], [layout])
    assert own.check([[param]], {}) == 0
    param.grad = torch.ones(4, 3)
    assert own.check([[param]], {}) == watch.CAME_OR_WENT
    assert cell == param.grad.data_ptr()


def test_versions_are_counted_as_by_torch():
    world = World()
    increment = versions.increment_of(world.params)
    assert increment is not torch.autograd.graph.increment_version
    views = [param.detach() for param in world.params]  # they share the count
    for count in range(1, 4):
        increment(world.params[1:])
        assert [param._version for param in world.params] == [0, count, count]
        assert [view._version for view in views] == [0, count, count]


def test_inference_tensors_have_no_versions():
    with torch.inference_mode():
        param = torch.nn.Parameter(torch.zeros(3))
    increment = versions.increment_of([param, torch.zeros(3)])
    assert increment is torch.autograd.graph.increment_version


def test_without_its_symbol_torch_counts(monkeypatch):
    world = World()
    monkeypatch.setattr(versions, "_function", lambda: 0)
    monkeypatch.setattr(versions, "_can_increment", versions._can_increment.__wrapped__)
    increment = versions.increment_of(world.params)
    assert increment is torch.autograd.graph.increment_version
    increment(world.params)
    assert {param._version for param in world.params} == {1}
