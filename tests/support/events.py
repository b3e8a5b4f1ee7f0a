"""Events that may happen between two steps, to apply to several optimizers in the same way."""

import copy

import torch

import fusedstep.hf
import fusedstep.optim
from tests.support.cases import same_bits

SHAPES = [(), (1,), (0,), (7,), (65,), (4, 6), (6, 1), (3, 0), (2, 3, 5), (33, 40), (300, 260)]


def flipped(tensor):
    """The same numbers with another order of strides, or with gaps."""
    if tensor.dim() >= 2:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    return torch.stack([tensor, tensor], -1)[..., 0]


def shifted(tensor):
    """The same numbers at an address that is not a multiple of 16."""
    room = tensor.new_empty(tensor.numel() + 1)
    return room[1:].view(tensor.shape).copy_(tensor)


class World:
    """An optimizer and its parameters. Its random numbers depend only on its own events."""

    def __init__(self, make, params, backend):
        self.random = torch.Generator().manual_seed(0)
        groups = {}
        for shape, dtype, flip, group in params:
            values = self.numbers(shape, dtype)
            param = torch.nn.Parameter(flipped(values) if flip else values)
            groups.setdefault(group, []).append(param)
        self.opt = make(
            [{"params": own, **OPTIONS[make][group]} for group, own in groups.items()], backend
        )
        self.kept = []

    def numbers(self, shape, dtype):
        return torch.randn(shape, generator=self.random, dtype=torch.float64).to(dtype)

    @property
    def params(self):
        return [param for params in self.opt._lists() for param in params]

    def new_grads(self):
        """Makes gradients in memory that no gradient had before."""
        for param in self.params:
            self.kept.append(param.grad)
            param.grad = self.numbers(param.shape, param.dtype)

    def step(self):
        try:
            self.opt.step()
        except (RuntimeError, TypeError, KeyError) as error:
            return f"{type(error).__name__}: {error}"
        return None


def adamw(groups, backend):
    return fusedstep.optim.AdamW(groups, lr=0.05, backend=backend)


def adafactor(groups, backend):
    return fusedstep.optim.Adafactor(groups, backend=backend)


def hf_adafactor(groups, backend):
    return fusedstep.hf.Adafactor(groups, backend=backend)


def hf_adamw(groups, backend):
    return fusedstep.hf.AdamW(groups, lr=0.05, no_deprecation_warning=True, backend=backend)


def sgd(groups, backend):
    return fusedstep.optim.SGD(groups, lr=0.05, momentum=0.9, backend=backend)


def nadam(groups, backend):
    return fusedstep.optim.NAdam(groups, lr=0.05, backend=backend)


OPTIONS = {
    adamw: [{}, {"amsgrad": True, "weight_decay": 0.3}, {"maximize": True, "lr": 0.5}],
    adafactor: [{}, {"eps": (0.1, 0.01), "maximize": True}, {"weight_decay": 0.3, "d": 2.0}],
    hf_adafactor: [
        {},
        {"beta1": 0.7},
        {"lr": 0.1, "relative_step": False, "scale_parameter": False},
    ],
    hf_adamw: [{}, {"correct_bias": False}, {"weight_decay": 0.3, "betas": (0.5, 0.5)}],
    sgd: [{}, {"weight_decay": 0.3, "nesterov": True}, {"momentum": 0.0}],
    nadam: [{}, {"momentum_decay": 0.1}, {"weight_decay": 0.3, "decoupled_weight_decay": True}],
}


def assert_same_worlds(a, b):
    for index, (p, q) in enumerate(zip(a.params, b.params, strict=True)):
        where = f"parameter {index} {tuple(p.shape)} {p.dtype}"
        assert same_bits(p, q) and p.stride() == q.stride(), where
        own, other = a.opt.state.get(p, {}), b.opt.state.get(q, {})
        assert own.keys() == other.keys(), where
        for key in own:
            x, y = torch.as_tensor(own[key]), torch.as_tensor(other[key])
            assert same_bits(x, y), f"{where}: {key} is {x}, expected {y}"


# Events that happen to the k-th parameter, or to all, between two steps.


def grad_goes(world, k):
    world.params[k].grad = None


def grad_of_other_strides(world, k):
    param = world.params[k]
    param.grad = flipped(world.numbers(param.shape, param.dtype))


def grad_off_its_alignment(world, k):
    param = world.params[k]
    param.grad = shifted(world.numbers(param.shape, param.dtype))


def negated(tensor):
    """A view of the same memory, which torch reads as negated."""
    return torch._neg_view(tensor)


def grad_negated(world, k):
    param = world.params[k]
    param.grad = negated(world.numbers(param.shape, param.dtype))


def data_negated(world, k):
    world.params[k].data = negated(world.params[k].data)


def data_moves(world, k):
    world.params[k].data = world.params[k].data.clone()


def data_of_other_strides(world, k):
    world.params[k].data = flipped(world.params[k].data)


def data_of_other_shape(world, k):
    world.params[k].data = world.numbers((*world.params[k].shape, 2), world.params[k].dtype)


def data_of_other_dtype(world, k):
    world.params[k].data = world.params[k].data.double()


def state_goes(world, k):
    world.opt.state.pop(world.params[k], None)


def all_states_go(world, k):
    world.opt.state.clear()


def tensors_of_state(world, k):
    state = world.opt.state.get(world.params[k], {})
    return state, [key for key, value in state.items() if torch.is_tensor(value) and value.dim()]


def state_replaced(world, k):
    state, keys = tensors_of_state(world, k)
    state.update({key: state[key].clone() for key in keys})


def state_of_other_dtype(world, k):
    state, keys = tensors_of_state(world, k)
    state.update({key: state[key].to(torch.bfloat16) for key in keys[:1]})


def state_negated(world, k):
    state, keys = tensors_of_state(world, k)
    for key in keys[:1]:
        state[key].data = negated(state[key].data)


def data_of_state_moves(world, k):
    state, keys = tensors_of_state(world, k)
    for key in keys:
        state[key].data = flipped(state[key].data)


def step_replaced(world, k):
    state = world.opt.state.get(world.params[k], {})
    if "step" in state:
        state["step"] = torch.tensor(6.0) if torch.is_tensor(state["step"]) else 6


def step_written(world, k):
    state = world.opt.state.get(world.params[k], {})
    if torch.is_tensor(state.get("step")):
        state["step"].fill_(3.0)


def data_of_step_moves(world, k):
    state = world.opt.state.get(world.params[k], {})
    if torch.is_tensor(state.get("step")):
        state["step"].data = torch.tensor(4.0)


def rms_replaced(world, k):
    state = world.opt.state.get(world.params[k], {})
    if "RMS" in state:
        state["RMS"] = float(state["RMS"])


def reloaded(world, k):
    world.opt.load_state_dict(copy.deepcopy(world.opt.state_dict()))


def reloaded_as_it_is(world, k):
    world.opt.load_state_dict(world.opt.state_dict())


def give(param, grad):
    """Sets a gradient, if torch allows it."""
    if grad is not None and (grad.shape, grad.dtype) == (param.shape, param.dtype):
        param.grad = grad


def copied(world, k):
    grads = [param.grad for param in world.params]
    world.opt = copy.deepcopy(world.opt)
    for param, grad in zip(world.params, grads, strict=True):
        give(param, grad)


def group_added(world, k):
    param = torch.nn.Parameter(world.numbers((5, 4), torch.float32))
    world.opt.add_param_group({"params": [param], "weight_decay": 0.2})


def param_replaced(world, k):
    params = next(params for params in world.opt._lists() if params)
    old = params[0]
    world.opt.state.pop(old, None)
    params[0] = torch.nn.Parameter(old.detach().clone())
    give(params[0], old.grad)


def params_swapped(world, k):
    first, last = world.opt._lists()[0], world.opt._lists()[-1]
    first[0], last[-1] = last[-1], first[0]


def groups_reversed(world, k):
    world.opt.param_groups.reverse()


def options_changed(world, k):
    for group in world.opt.param_groups[: 1 + k % 2]:
        group["lr"] = None if group.get("relative_step") else 0.01 * (k + 1)
        group["weight_decay"] = 0.1 * k


def rule_changed(world, k):
    for group in world.opt.param_groups:
        group.update({"amsgrad": False} if "amsgrad" in group else {"beta1": None})


def threads_changed(world, k):
    torch.set_num_threads(1 + k % 2)


def nothing(world, k):
    pass


def all_grads_move(world, k):
    world.new_grads()


def list_of_params_grows(world, k):
    world.opt.param_groups[-1]["params"].append(torch.nn.Parameter(torch.ones(3)))


# fmt: off
# Events after which a plan does not hold, since it was made from other tensors.
MOVES = [
    grad_of_other_strides, grad_off_its_alignment, grad_negated, data_moves, data_negated,
    data_of_other_strides, data_of_other_shape, data_of_other_dtype, state_goes,
    all_states_go, state_replaced, state_of_other_dtype, state_negated, data_of_state_moves,
    reloaded, reloaded_as_it_is, copied, group_added, param_replaced,
]
EVENTS = [
    *MOVES, grad_goes, step_replaced, step_written, data_of_step_moves, rms_replaced,
    params_swapped, groups_reversed, options_changed, rule_changed, threads_changed,
]
