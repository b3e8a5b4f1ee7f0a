"""Both watches look into DTensors: they notice whatever changes there, and follow gradients."""

import pytest
import torch

import fusedstep.optim
from fusedstep import native
from fusedstep.plan import shards, watch
from tests.support.fake_mesh import fake_mesh

KINDS = [watch.PythonWatch, watch.watch]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=["python", "native"])


@pytest.fixture(autouse=True, scope="module")
def mesh():
    with fake_mesh() as mesh:
        yield mesh


def sharded(mesh, own, placements=None):
    from torch.distributed.tensor import DTensor, Shard

    placements = placements or [Shard(0)]
    return DTensor.from_local(own, mesh, placements, run_check=False)


class World:
    """Three DTensors with gradients and states, and a watch on them. `rows` are here."""

    def __init__(self, kind, mesh, without=(), earlier=(), rows=4):
        self.mesh, self.rows = mesh, rows
        self.params = [torch.nn.Parameter(self.like()) for _ in range(3)]
        for index, param in enumerate(self.params):
            param.grad = None if index in without else self.like()
        counters = torch.zeros(3).unbind()
        self.state = {
            param: {"step": step, "exp_avg": self.like()}
            for param, step in zip(self.params, counters, strict=True)
        }
        self.cells = torch.full((3,), -1)
        places = [cell.data_ptr() for cell in self.cells.unbind()]
        keys = ("exp_avg", "step")
        self.watch = kind([self.params], self.state, keys, places, earlier)
        is_native = kind is watch.watch
        assert type(self.watch) is (native.module.Watch if is_native else watch.PythonWatch)
        self.kept = [param.grad for param in self.params]
        assert self.check() == 0

    def like(self, placements=None):
        return sharded(self.mesh, torch.ones(self.rows, 3), placements)

    def check(self):
        return self.watch.check([self.params], self.state)

    @property
    def first(self):
        return self.params[0]

    @property
    def first_state(self):
        return self.state[self.first]


def other_placements(tensor):
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

    tensor._spec = DTensorSpec(
        tensor.device_mesh, (Replicate(),), tensor_meta=tensor._spec.tensor_meta
    )


def equal_placements(tensor):
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

    meta = tensor._spec.tensor_meta
    tensor._spec = DTensorSpec(tensor.device_mesh, (Shard(0),), tensor_meta=meta)


def other_local(tensor):
    tensor._local_tensor = torch.ones(4, 3)


def other_local_of_the_same_memory(tensor):
    tensor._local_tensor = tensor._local_tensor.view(4, 3)


def other_data(tensor):
    tensor._local_tensor.data = torch.ones(4, 3)


def other_strides(tensor):
    tensor._local_tensor.data = torch.ones(3, 4).t()


def other_dtype(tensor):
    tensor._local_tensor = torch.ones(4, 3, dtype=torch.float64)


def no_local(tensor):
    del tensor._local_tensor


INSIDE = [
    other_placements, other_local, other_local_of_the_same_memory, other_data, other_strides,
    other_dtype,
]  # fmt: skip


@each_kind
@pytest.mark.parametrize("change", INSIDE)
@pytest.mark.parametrize("what", ["parameter", "state"])
def test_a_change_inside_needs_a_new_plan(kind, mesh, what, change):
    world = World(kind, mesh)
    change(world.first if what == "parameter" else world.first_state["exp_avg"])
    assert world.check() == -1
    assert world.check() == -1


@each_kind
@pytest.mark.parametrize("what", ["parameter", "state", "gradient"])
def test_another_object_that_says_the_same_of_the_spread_is_no_change(kind, mesh, what):
    world = World(kind, mesh)
    state = world.first_state["exp_avg"]
    equal_placements({"parameter": world.first, "state": state, "gradient": world.first.grad}[what])
    assert world.check() == 0
    assert world.check() == 0


def another_state(world):
    world.first_state["exp_avg"] = world.like()


def another_wrapper_of_its_local(world):
    world.first_state["exp_avg"] = sharded(world.mesh, world.first_state["exp_avg"]._local_tensor)


def its_local_itself(world):
    world.first_state["exp_avg"] = world.first_state["exp_avg"]._local_tensor


def a_number(world):
    world.first_state["exp_avg"] = 1.0


def a_counter_moves(world):
    world.first_state["step"].data = torch.zeros(())


def another_parameter(world):
    world.params[0] = torch.nn.Parameter(world.like())
    world.params[0].grad = world.like()


def its_local_as_parameter(world):
    world.params[0] = world.first._local_tensor


@each_kind
@pytest.mark.parametrize(
    "change",
    [
        another_state, another_wrapper_of_its_local, its_local_itself, a_number, a_counter_moves,
        another_parameter, its_local_as_parameter,
    ],
)  # fmt: skip
def test_another_object_needs_a_new_plan(kind, mesh, change):
    world = World(kind, mesh)
    change(world)
    assert world.check() == -1


@each_kind
@pytest.mark.parametrize("change", [other_placements, other_strides, other_dtype])
def test_a_gradient_of_another_kind_needs_a_new_plan(kind, mesh, change):
    world = World(kind, mesh)
    change(world.first.grad)
    assert world.check() == -1


@each_kind
def test_a_gradient_on_another_mesh_needs_a_new_plan(kind, mesh):
    from torch.distributed.device_mesh import DeviceMesh

    world = World(kind, mesh)
    other = DeviceMesh("cpu", [[0, 1]], mesh_dim_names=("replicas", "parts"))["parts"]
    assert other != mesh
    world.first.grad = sharded(other, torch.ones(4, 3))
    assert world.check() == -1


@each_kind
def test_gradients_that_move_are_followed(kind, mesh):
    world = World(kind, mesh)
    for _ in range(3):
        world.kept += [world.params[0].grad, world.params[2].grad]
        world.params[0].grad = world.like()  # another DTensor, with a spec of its own
        world.kept.append(world.params[2].grad._local_tensor)
        other_local(world.params[2].grad)
        assert world.check() == 2
        addresses = [world.params[k].grad._local_tensor.data_ptr() for k in (0, 2)]
        assert world.cells.tolist() == [addresses[0], -1, addresses[1]]
        assert world.check() == 0


@each_kind
def test_a_gradient_off_its_alignment_needs_a_new_plan(kind, mesh):
    world = World(kind, mesh)
    world.first.grad = sharded(mesh, torch.ones(13)[1:].view(4, 3))
    assert world.check() == -1


@each_kind
def test_gradients_come_and_go(kind, mesh):
    world = World(kind, mesh)
    world.first.grad = None
    assert world.check() == watch.CAME_OR_WENT
    assert world.watch.present() == b"\0\1\1"
    assert world.cells.tolist() == [0, -1, -1]
    assert world.check() == 0
    world.first.grad = world.like()
    assert world.check() == watch.CAME_OR_WENT
    assert world.watch.present() == b"\1\1\1"
    assert world.cells[0] == world.first.grad._local_tensor.data_ptr()


@each_kind
def test_a_gradient_that_was_never_seen_needs_a_new_plan(kind, mesh):
    world = World(kind, mesh, without=[0])
    world.first.grad = world.like()
    assert world.check() == -1


@each_kind
@pytest.mark.parametrize("change", [None, equal_placements, other_placements, other_strides])
def test_a_layout_of_before_is_known(kind, mesh, change):
    device, size = torch.device("cpu"), torch.Size((4, 3))
    known = watch.Layout(torch.float32, device, size, (3, 1), False)
    world = World(kind, mesh, without=[0], earlier=[known, None, None])
    world.first.grad = world.like()
    if change is not None:
        change(world.first.grad)
    is_other = change in (other_placements, other_strides)
    assert world.check() == (-1 if is_other else watch.CAME_OR_WENT)
    if not is_other:
        assert world.cells[0] == world.first.grad._local_tensor.data_ptr()


@each_kind
def test_an_empty_part_has_a_gradient_or_none(kind, mesh):
    world = World(kind, mesh, rows=0)
    assert world.watch.present() == b"\1\1\1"
    world.first.grad = world.like()
    assert world.check() == 0
    for expected in (0, shards.EMPTY):
        world.first.grad = world.like() if expected else None
        assert world.check() == watch.CAME_OR_WENT
        assert world.cells.tolist() == [expected, -1, -1]


@each_kind
def test_a_collective_that_is_under_way_is_waited_for(kind, mesh, monkeypatch):
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    world, waited_for = World(kind, mesh), []
    real = AsyncCollectiveTensor.wait
    note = lambda own: waited_for.append(own) or real(own)  # noqa: E731
    monkeypatch.setattr(AsyncCollectiveTensor, "wait", note)
    for _ in range(2):
        pending = AsyncCollectiveTensor(torch.ones(4, 3))
        world.first.grad = world.like()
        world.first.grad._local_tensor = pending
        assert world.check() == 1
        assert any(own is pending for own in waited_for)
        assert world.cells[0] == pending.elem.data_ptr()


def test_a_dtensor_without_its_local_tensor_has_changed(mesh):
    for which in range(3):
        world = World(watch.watch, mesh)
        no_local((world.first, world.first_state["exp_avg"], world.first.grad)[which])
        assert world.check() == -1


def test_classes_with_other_slots_are_refused():
    learn = native.module.learn_dtensors

    class Fake(torch.Tensor):
        _local_tensor = _spec = property(lambda self: None)

    assert not learn(torch.Tensor, torch.Tensor, shards.local)
    assert not learn(Fake, torch.Tensor, shards.local)
    assert not learn(3, torch.Tensor, shards.local)


@pytest.mark.parametrize("what", ["the DTensor", "its local tensor"])
def test_autograd_notices_that_a_step_wrote_what_it_saved(mesh, what):
    """Each has a version of its own."""
    param = torch.nn.Parameter(sharded(mesh, torch.ones(4, 3)))
    saved = param if what == "the DTensor" else param.to_local()
    loss = saved.pow(2).sum()
    param.grad = sharded(mesh, torch.ones(4, 3))
    fusedstep.optim.AdamW([param]).step()
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        loss.backward()


@pytest.mark.parametrize("kind", [fusedstep.optim.AdamW, fusedstep.optim.Adafactor])
def test_a_plan_lasts_while_gradients_are_new_objects(mesh, kind):
    params = [torch.nn.Parameter(sharded(mesh, torch.ones(4, 3))) for _ in range(3)]
    optimizer = kind(params)
    plans = set()
    for _ in range(4):
        for param in params:
            param.grad = sharded(mesh, torch.ones(4, 3))
        optimizer.step()
        plans.add(optimizer._plan)
    assert len(plans) == 1
