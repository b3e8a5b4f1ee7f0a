"""Damages to an optimizer after a step, so that it refuses the next one, and a snapshot that shows
whether anything changed."""

import copy
import math

import torch

SHAPES = [(4, 3), (7,), (5, 6)]
NAMES = ["fc.weight", "fc.bias", "head.weight"]
BAD = 2  # the index of the damaged parameter


def copied(value):
    if not isinstance(value, torch.Tensor):
        return copy.copy(value)
    if value.is_nested or value.layout != torch.strided or value.device.type == "meta":
        return value
    return value.detach().clone()


def same(a, b):
    if a is b:
        return True
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a != a)).all())
    return a == b or (a != a and b != b)


class Snapshot:
    """A copy of everything that a step may change, and more."""

    def __init__(self, optimizer, params):
        self.optimizer, self.params = optimizer, params
        self.tensors = [copied(param.data) for param in params]
        self.grads = [(param.grad, copied(param.grad)) for param in params]
        self.versions = [param._version for param in params]
        self.states = [
            (param, {key: copied(value) for key, value in state.items()})
            for param, state in optimizer.state.items()
        ]
        self.groups = [dict(group) for group in optimizer.param_groups]

    def assert_nothing_changed(self):
        for index, param in enumerate(self.params):
            assert same(param.data, self.tensors[index])
            assert param._version == self.versions[index]
            grad, numbers = self.grads[index]
            assert param.grad is grad and same(grad, numbers)
        now = list(self.optimizer.state.items())
        assert [id(param) for param, _ in now] == [id(param) for param, _ in self.states]
        for (_, state), (_, kept) in zip(now, self.states, strict=True):
            assert list(state) == list(kept)
            assert all(same(state[key], kept[key]) for key in kept)
        for group, kept in zip(self.optimizer.param_groups, self.groups, strict=True):
            assert group.keys() == kept.keys()
            assert all(group[key] is kept[key] for key in kept)


# Each damage gets the optimizer and its parameters, and returns a function that undoes it.


def put(owner, key, value):
    kept = owner[key]
    owner[key] = value
    return lambda: owner.__setitem__(key, kept)


def set_attribute(owner, name, value):
    kept = getattr(owner, name, None)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, kept)


def state_of(optimizer, params):
    return optimizer.state[params[BAD]]


def tensor_key(state):
    return next(k for k, v in state.items() if isinstance(v, torch.Tensor) and v.dim())


def without(owner, key):
    kept = dict(owner)
    del owner[key]
    return lambda: (owner.clear(), owner.update(kept))


def step_becomes(value):
    return lambda optimizer, params: put(state_of(optimizer, params), "step", value)


def state_becomes(change):
    def damage(optimizer, params):
        state = state_of(optimizer, params)
        key = tensor_key(state)
        return put(state, key, change(state[key]))

    return damage


def state_goes(optimizer, params):
    state = state_of(optimizer, params)
    return without(state, tensor_key(state))


def step_goes(optimizer, params):
    return without(state_of(optimizer, params), "step")


def state_of_sgd(optimizer, params):
    return put(optimizer.state, params[BAD], {"momentum_buffer": torch.zeros(5, 6)})


def expanded(value):
    return torch.zeros(()).expand(value.shape)


def windows(value):
    """A view whose elements overlap. In a matrix no stride is 0."""
    if value.dim() < 2 or min(value.shape) < 2:
        return expanded(value)
    return torch.zeros(100).as_strided(value.shape, [1] * value.dim())


def sparse(optimizer, params):
    return set_attribute(params[BAD], "grad", params[BAD].grad.to_sparse())


def other_grad_shape(optimizer, params):
    return set_attribute(params[BAD], "data", torch.ones(6, 5))


def tied(optimizer, params):
    return set_attribute(params[0], "data", params[BAD].data[:4, :3])


def own_gradient(optimizer, params):
    optimizer._plan = None  # an existing plan lets gradients move anywhere
    return set_attribute(params[BAD], "grad", params[BAD].data)


def group(key, value):
    return lambda optimizer, params: put(optimizer.param_groups[0], key, value)


def option_goes(optimizer, params):
    return without(optimizer.param_groups[0], "weight_decay")


def given_twice(optimizer, params):
    return put(optimizer.param_groups[0], "params", [*params, params[BAD]])


def attribute(name, value):
    return lambda optimizer, params: set_attribute(optimizer, name, value)


# Name -> the damage, the error that it causes, and words in the error.
WHERE = ("parameter 2 of group 0", "'head.weight'")
TWO = torch.ones(2)
DAMAGES = {
    "step: two elements": (step_becomes(TWO), ValueError, *WHERE, "has shape (2,)", "one real"),
    "step: on meta": (step_becomes(torch.ones((), device="meta")), RuntimeError, *WHERE, "meta"),
    "step: negative": (step_becomes(torch.tensor(-1.0)), ValueError, *WHERE, "is -1, expected"),
    "step: a negative int": (step_becomes(-1), ValueError, *WHERE, "is -1, expected"),
    "step: nan": (step_becomes(torch.tensor(math.nan)), ValueError, *WHERE, "counter is nan"),
    "step: infinite": (step_becomes(math.inf), ValueError, *WHERE, "counter is inf"),
    "step: complex": (step_becomes(torch.tensor(1j)), ValueError, *WHERE, "one real number"),
    "step: a word": (step_becomes("many"), TypeError, *WHERE, "is 'many', expected a number"),
    "step: None": (step_becomes(None), TypeError, *WHERE, "is None, expected a number"),
    "step: gone": (step_goes, KeyError, *WHERE, "step", "without its counter"),
    "state: gone": (state_goes, KeyError, *WHERE, "has no state", "another optimizer"),
    "state: of SGD": (state_of_sgd, KeyError, *WHERE, "without its counter", "Load a checkpoint"),
    "state: expanded": (state_becomes(expanded), RuntimeError, *WHERE, "share memory", ".clone()"),
    "state: windows": (state_becomes(windows), RuntimeError, *WHERE, "share memory"),
    "state: shape": (state_becomes(lambda x: TWO), RuntimeError, *WHERE, "has shape (2,)"),
    "state: int": (state_becomes(lambda x: x.int()), TypeError, *WHERE, "torch.int32", "Convert"),
    "state: sparse": (state_becomes(lambda x: x.to_sparse()), TypeError, *WHERE, "sparse"),
    "state: on meta": (state_becomes(lambda x: x.to("meta")), RuntimeError, *WHERE, "on meta"),
    "state: a list": (state_becomes(lambda x: [1]), TypeError, *WHERE, "is [1], expected a tensor"),
    "gradient: sparse": (sparse, RuntimeError, *WHERE, "does not support sparse gradients"),
    "gradient: shape": (
        other_grad_shape, RuntimeError, *WHERE, "gradient has shape (5, 6)", "(6, 5)",
    ),
    "gradient: the parameter": (own_gradient, RuntimeError, *WHERE, "shares memory with"),
    "parameter: tied": (tied, RuntimeError, *WHERE, "'fc.weight'", "shares memory with"),
    "parameter: twice": (given_twice, ValueError, "parameter 3 of group 0", "once more"),
    "group: lr is nan": (group("lr", math.nan), ValueError, "group 0: lr should be a number"),
    "group: lr is a word": (group("lr", "fast"), TypeError, "group 0: lr should be a number"),
    "group: lr is a vector": (group("lr", TWO), TypeError, "lr should be one number"),
    "group: decay is nan": (group("weight_decay", math.nan), ValueError, "weight_decay should be"),
    "group: decay is gone": (option_goes, KeyError, "group 0 has no weight_decay"),
    "grad_scale": (attribute("grad_scale", TWO), ValueError, "grad_scale should be one number"),
    "found_inf": (attribute("found_inf", TWO), ValueError, "found_inf should be one number"),
    "backend": (attribute("backend", "cuda"), RuntimeError, "is not available"),
}  # fmt: skip
ONLY = {
    "hf-adafactor": {
        "RMS: a vector": (
            lambda o, p: put(state_of(o, p), "RMS", torch.ones(3)),
            TypeError, *WHERE, "state 'RMS' is a tensor of shape (3,)", "expected one number",
        ),
        "RMS: a word": (
            lambda o, p: put(state_of(o, p), "RMS", "x"), TypeError, *WHERE, "'RMS' is 'x'",
        ),
        "group: beta1": (group("beta1", 1.5), ValueError, "group 0: beta1 should be 0 or more"),
        "group: clip": (group("clip_threshold", 0.0), ValueError, "clip_threshold should be above"),
        "group: no lr": (group("relative_step", False), ValueError, "lr=None needs relative_step"),
    },
    "adamw": {
        "group: betas": (group("betas", (0.9, 1.5)), ValueError, "betas[1] should be 0 or more"),
        "group: amsgrad": (group("amsgrad", True), KeyError, "max_exp_avg_sq", "switched on later"),
        "group: capturable": (group("capturable", True), AssertionError, "capturable=True"),
    },
    "adafactor": {
        "group: eps": (group("eps", (None, -1.0)), ValueError, "eps[1] should be 0 or more"),
    },
}  # fmt: skip
