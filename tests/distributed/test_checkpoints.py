"""Checkpoints of torch.distributed.checkpoint: saved by some processes, loaded by others."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh

from tests.support.cases import same_bits
from tests.support.processes import on_processes
from tests.support.sharded import case_of, whole
from tests.support.sharded_models import Sharded, model_of, sharded
from tests.support.sweeps import sweep
from tests.support.versions import TORCH

NAMES = ["adamw", "adamw-amsgrad", "adafactor", "hf-adafactor", "hf-adafactor-momentum"]
RESHARDED = 1e-7  # relative to the weights: sums of columns are added up in another order


class Training:
    """A model over the first `size` processes, or in one without any sharding, and its optimizer.
    Gradients are made of the weights, so they are the same whoever takes the step."""

    def __init__(self, name, size, kind="fsdp", is_flat=False, **options):
        self.options = StateDictOptions(flatten_optimizer_state_dict=is_flat)
        self.is_here, self.group = True, None
        if size == 1:
            self.is_here = dist.get_rank() == 0
            self.own = Sharded("fsdp", model_of(kind), 0, 1)
        elif size == dist.get_world_size():
            self.own = sharded(kind)
        else:
            mesh = DeviceMesh("cpu", list(range(size)))
            self.group = mesh.get_group() if dist.get_rank() < size else None
            self.is_here = dist.get_rank() < size
            self.own = sharded(kind, mesh) if self.is_here else None
        if self.is_here:
            self.optimizer = case_of(name).make(self.own.named().values(), **options)

    def steps(self, first, count):
        for step in range(first, first + count):
            for index, (_, param) in enumerate(sorted(self.own.named().items())):
                param.grad = 0.1 * torch.cos(3.0 * param.detach() + step + index)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def dicts(self):
        model = self.own.model
        optim = get_optimizer_state_dict(model, self.optimizer, options=self.options)
        return {"optim": optim, "model": get_model_state_dict(model)}

    def save(self, folder):
        dcp.save(self.dicts(), checkpoint_id=folder, **self.others())

    def load(self, folder):
        made = self.dicts()
        dcp.load(made, checkpoint_id=folder, **self.others())
        model = self.own.model
        set_optimizer_state_dict(model, self.optimizer, made["optim"], options=self.options)
        set_model_state_dict(model, made["model"])
        return self

    def others(self):
        if self.own.size == 1:
            return {"no_dist": True}
        return {} if self.group is None else {"process_group": self.group}

    def assert_near(self, weights, is_exact):
        for key, found in self.own.weights().items():
            if is_exact:
                assert same_bits(found, weights[key]), key
            else:
                apart = (found - weights[key]).norm() / weights[key].norm()
                assert apart <= RESHARDED, f"{key}: {apart:.1e}"


@on_processes(2, 4)
@pytest.mark.parametrize("is_flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_resumed_has_the_bits_of_one_that_goes_on(name, is_flat, tmp_path):
    first = Training(name, dist.get_world_size(), is_flat=is_flat).steps(0, 3)
    first.save(tmp_path)
    second = Training(name, dist.get_world_size(), is_flat=is_flat).load(tmp_path)
    weights = first.steps(3, 2).own.weights()
    second.steps(3, 2).assert_near(weights, is_exact=True)


@on_processes(4)
@pytest.mark.parametrize("name", ["adamw", "adafactor", "hf-adafactor-momentum"])
def test_two_ways_of_sharding_are_resumed_with_the_same_bits(name, tmp_path):
    first = Training(name, 4, "fsdp+tp").steps(0, 3)
    first.save(tmp_path)
    second = Training(name, 4, "fsdp+tp").load(tmp_path)
    weights = first.steps(3, 2).own.weights()
    second.steps(3, 2).assert_near(weights, is_exact=True)


# torch 2.6 cannot load in one of several processes: its `load` has no `no_dist`.
WITH_ONE = [(4, 1), (1, 2)] if TORCH >= (2, 7) else []


@on_processes(4)
@pytest.mark.parametrize(("before", "after"), [(2, 4), *WITH_ONE])
@pytest.mark.parametrize("is_flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("name", sweep(NAMES, ["adamw", "adafactor"]))
def test_other_processes_go_on(name, is_flat, before, after, tmp_path):
    saved = Training(name, before, is_flat=is_flat)
    weights = [None]
    if saved.is_here:
        saved.steps(0, 3).save(tmp_path)
        weights = [saved.steps(3, 2).own.weights()]
    dist.broadcast_object_list(weights, 0)
    loaded = Training(name, after, is_flat=is_flat)
    if loaded.is_here:
        is_exact = name.startswith("adamw")
        loaded.load(tmp_path).steps(3, 2).assert_near(weights[0], is_exact)


LOW_PRECISION = [
    {"master_weights": True},
    {"master_weights": 8},
    {"stochastic_rounding": True, "seed": 4},
]


@on_processes(4)
@pytest.mark.parametrize(("before", "after"), sweep([(2, 4), (4, 2), *WITH_ONE[:1]], [(2, 4)]))
@pytest.mark.parametrize("options", LOW_PRECISION, ids=str)
def test_low_precision_goes_on_in_other_processes(options, before, after, tmp_path):
    saved = Training("adamw", before, "bfloat16", **options)
    weights = [None]
    if saved.is_here:
        saved.steps(0, 3).save(tmp_path)
        weights = [saved.steps(3, 2).own.weights()]
    dist.broadcast_object_list(weights, 0)
    loaded = Training("adamw", after, "bfloat16", **options)
    if loaded.is_here:
        loaded.load(tmp_path).steps(3, 2).assert_near(weights[0], is_exact=True)


@on_processes(2)
@pytest.mark.parametrize("name", NAMES)
def test_one_process_gives_the_whole_state_to_all(name):
    first = Training(name, 2).steps(0, 3)
    model = first.own.model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # torch hands out the counters themselves, and would let the second optimizer have them.
    optim = copy.deepcopy(get_optimizer_state_dict(model, first.optimizer, options=options))
    weights = get_model_state_dict(model, options=options)
    second = Training(name, 2)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    is_first = dist.get_rank() == 0
    set_optimizer_state_dict(
        second.own.model, second.optimizer, optim if is_first else {}, options=options
    )
    set_model_state_dict(second.own.model, weights if is_first else {}, options=options)
    expected = first.steps(3, 2).own.weights()
    second.steps(3, 2).assert_near(expected, is_exact=True)


# Options with which a step would change weights although lr = 0 and gradients are zero.
MOVING = [
    ("hf-adafactor", {"weight_decay": 0.1}),
    ("hf-adafactor", {"weight_decay": 0.1, "warmup_init": True, "beta1": 0.9}),
    ("hf-adafactor", {"eps": (0.0, 1e-3)}),
    ("adafactor", {"eps": (0.0, 1e-3), "weight_decay": 0.1}),
    ("adamw", {"eps": 0.0}),
    ("adamw-amsgrad", {"eps": 0.0}),
    ("old-adamw", {"eps": 0.0}),
]


@on_processes(2)
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), *MOVING])
def test_states_that_are_made_without_a_step_move_no_weight(name, options):
    for kind, size in (("fsdp", 2), ("tp", 2), ("fsdp", 1)):
        case = case_of(name)
        own = sharded(kind) if size > 1 else Sharded(kind, model_of(kind), 0, 1)
        optimizer = case.ours(own.named().values(), **{**case.options, **case.only_ours, **options})
        before = own.weights()
        made = get_optimizer_state_dict(own.model, optimizer)
        assert made["state"].keys() == own.named().keys()
        for key, weight in own.weights().items():
            assert same_bits(weight, before[key]), f"{kind} {key}"
        if (name, options) in MOVING:
            assert {float(state["step"]) for state in made["state"].values()} == {0.0}


@on_processes(2)
def test_a_first_step_with_lr_0_counts_if_any_process_has_a_gradient():
    """As AdafactorSchedule leaves it: lr = 0 in the group, and a shard of zero gradients."""
    own = sharded("fsdp")
    optimizer = case_of("hf-adafactor").ours(own.named().values(), weight_decay=0.1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = own.weights()
    for param in own.named().values():
        param.grad = torch.zeros_like(param)
    if dist.get_rank() == 1:
        own.model.out.weight.grad.to_local().fill_(1.0)
    optimizer.step()
    assert {state["step"] for state in optimizer.state.values()} == {1}
    changed = {key for key, weight in own.weights().items() if not same_bits(weight, before[key])}
    assert changed == own.named().keys()


@on_processes(2)
def test_a_state_that_is_spread_otherwise_is_refused_by_name():
    training = Training("hf-adafactor", 2).steps(0, 1)
    state = training.optimizer.state[training.own.model.out.weight]
    state["exp_avg_sq_row"] = whole(state["exp_avg_sq_row"])
    with pytest.raises(TypeError, match="state 'exp_avg_sq_row' is a Tensor, expected a DTensor"):
        training.steps(1, 1)
