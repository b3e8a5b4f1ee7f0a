"""Gradient release: the steps are those of an optimizer that waits for the end of backward."""

import copy

import pytest
import torch
from torch import nn

import fusedstep.hf
import fusedstep.optim
from bench.allocations import Allocations
from fusedstep.hf.adam_weight_decay import AdamWeightDecay
from fusedstep.optim import enable_gradient_release
from tests.support.cases import CASES, SHAPES, assert_same, make_params, set_grads
from tests.support.rule_cases import once_a_kind, once_a_rule


class Sum(nn.Module):
    """Its gradients are what it is called with."""

    def __init__(self, params):
        super().__init__()
        self.own = nn.ParameterList(params)

    def forward(self, gradients):
        pairs = zip(self.own, gradients, strict=True)
        terms = [(param * grad).sum().double() for param, grad in pairs if grad is not None]
        return torch.stack(terms).sum()


def gradients_of(params, seed):
    """Gradients that nobody has yet."""
    set_grads(params, seed)
    made = [param.grad for param in params]
    for param in params:
        param.grad = None
    return made


class Pair:
    """An optimizer whose gradients are released, and one that waits."""

    def __init__(self, case, dtype=torch.float32, shapes=SHAPES, groups=1):
        self.params, self.twins = make_params(shapes, dtype), make_params(shapes, dtype)
        self.model = Sum(self.params)
        self.released = case.make(in_groups(self.params, groups))
        self.waiting = case.make(in_groups(self.twins, groups))
        self.handle = enable_gradient_release(self.model, self.released)
        self.steps = 0

    def step(self, without=()):
        made = gradients_of(self.params, self.steps)
        made = [None if k in without else own for k, own in enumerate(made)]
        for twin, own in zip(self.twins, made, strict=True):
            twin.grad = own
        self.model(made).backward()
        self.waiting.step()
        self.waiting.zero_grad()
        self.released.step()
        self.steps += 1

    def assert_same(self):
        assert_same(self.released, self.params, self.waiting, self.twins)


def in_groups(params, count):
    return [{"params": params[k::count]} for k in range(count)]


def adamw():
    return next(case for case in CASES if case.name == "adamw")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@once_a_rule
def test_steps_have_the_bits_of_steps_after_backward(case, dtype):
    pair = Pair(case, dtype, groups=2)
    for _ in range(3):
        pair.step()
        assert all(param.grad is None for param in pair.params)
    pair.assert_same()


def test_there_is_never_more_than_one_gradient():
    pair = Pair(adamw())
    seen = []
    for param in pair.params:
        param.register_hook(lambda _: seen.append(sum(own.grad is not None for own in pair.params)))
    pair.step()
    assert seen == [0] * len(pair.params)


@once_a_kind
def test_a_parameter_without_a_gradient_keeps_its_place(case):
    pair = Pair(case)
    for without in ((), (0, 3), (), (1,)):
        pair.step(without)
    pair.assert_same()


def test_plans_are_kept():
    pair = Pair(adamw())
    made = []
    for _ in range(3):
        pair.step()
        made.append([hook.args[0]._plan for hook in hooks_of(pair.params)])
    assert None not in made[0]
    assert all(a is b for step in made[1:] for a, b in zip(step, made[0], strict=True))


def hooks_of(params):
    return [hook for param in params for hook in param._post_accumulate_grad_hooks.values()]


def test_groups_keep_their_own_options_and_a_schedule_changes_them():
    pair = Pair(adamw(), groups=3)
    for step in range(4):
        for optimizer in (pair.released, pair.waiting):
            for index, group in enumerate(optimizer.param_groups):
                group.update(lr=0.1 / (1 + step + index), weight_decay=0.1 * index)
        pair.step()
    pair.assert_same()


def test_a_checkpoint_may_be_loaded_in_between():
    pair = Pair(adamw(), groups=2)
    pair.step()
    saved = copy.deepcopy(pair.released.state_dict())
    assert saved["state"].keys() == pair.waiting.state_dict()["state"].keys()
    pair.step()
    for optimizer in (pair.released, pair.waiting):
        optimizer.load_state_dict(copy.deepcopy(saved))  # torch would share the tensors
    pair.step()
    pair.assert_same()


def test_what_is_added_or_unfrozen_later_is_updated_by_the_step():
    pair = Pair(adamw())
    pair.step()
    more, twins = make_params([(3, 4)], seed=7), make_params([(3, 4)], seed=7)
    pair.released.add_param_group({"params": more})
    pair.waiting.add_param_group({"params": twins})
    set_grads(more, 3)
    set_grads(twins, 3)
    pair.params, pair.twins = pair.params + more, pair.twins + twins
    pair.released.step()
    pair.waiting.step()
    pair.assert_same()


def test_a_parameter_that_the_optimizer_lost_keeps_its_gradient():
    pair = Pair(adamw())
    pair.step()
    lost = pair.released.param_groups[0]["params"].pop(0)
    pair.waiting.param_groups[0]["params"].pop(0)
    pair.step()
    assert lost.grad is not None
    assert_same(pair.released, pair.params[1:], pair.waiting, pair.twins[1:])


def test_after_remove_gradients_wait_for_the_step():
    pair = Pair(adamw())
    pair.step()
    pair.handle.remove()
    before = [param.detach().clone() for param in pair.params]
    pair.model(gradients_of(pair.params, 5)).backward()
    assert all(torch.equal(old, new) for old, new in zip(before, pair.params, strict=True))
    assert all(param.grad is not None for param in pair.params)
    enable_gradient_release(pair.model, pair.released)


def test_a_closure_and_hooks_run_once():
    pair = Pair(adamw())
    calls = []
    pair.released.register_step_post_hook(lambda *_: calls.append("hook"))

    def closure():
        loss = pair.model(gradients_of(pair.params, len(calls)))
        loss.backward()
        calls.append("closure")
        return loss

    for _ in range(2):
        assert pair.released.step(closure) is not None
    assert calls == ["closure", "hook"] * 2
    assert all(pair.released.state[param]["step"] == 2 for param in pair.params)


def test_tied_parameters_are_updated_once_with_their_sum():
    weight = nn.Parameter(torch.ones(4, 4))
    twin = nn.Parameter(torch.ones(4, 4))
    model = nn.Module()
    model.a, model.b = weight, weight
    released, waiting = (fusedstep.optim.AdamW([own], lr=0.1) for own in (weight, twin))
    enable_gradient_release(model, released)
    x = torch.arange(4.0)
    (model.a @ (model.b @ x)).sum().backward()
    released.step()
    (twin @ (twin @ x)).sum().backward()
    waiting.step()
    assert_same(released, [weight], waiting, [twin])


# What it cannot be combined with.


def test_two_backward_passes_in_one_step_are_refused():
    pair = Pair(adamw())
    made = gradients_of(pair.params, 0)
    pair.model(made).backward()
    before = [param.detach().clone() for param in pair.params]
    with pytest.raises(RuntimeError, match=r"parameter \d+ of group 0 .* second gradient.*remove"):
        pair.model(made).backward()
    assert all(torch.equal(old, new) for old, new in zip(before, pair.params, strict=True))


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_a_scaler_is_refused(name):
    pair = Pair(adamw())
    setattr(pair.released, name, torch.ones(()))
    with pytest.raises(RuntimeError, match=r"GradScaler.*enable_gradient_release.*bfloat16"):
        pair.released.step()


def test_clipping_by_the_norm_of_all_gradients_is_refused():
    params = make_params()
    optimizer = AdamWeightDecay(params, global_clipnorm=1.0)
    with pytest.raises(RuntimeError, match=r"global_clipnorm.*clipnorm"):
        enable_gradient_release(Sum(params), optimizer)
    optimizer = AdamWeightDecay(params)
    model = Sum(params)
    enable_gradient_release(model, optimizer)
    optimizer.param_groups[0]["global_clipnorm"] = 1.0
    before = [param.detach().clone() for param in params]
    with pytest.raises(RuntimeError, match="global_clipnorm"):
        model(gradients_of(params, 0)).backward()
    assert all(torch.equal(old, new) for old, new in zip(before, params, strict=True))


@once_a_kind
def test_max_grad_norm_is_refused(case):
    params = make_params()
    with pytest.raises(RuntimeError, match=r"max_grad_norm=1.0 .*enable_gradient_release"):
        enable_gradient_release(Sum(params), case.make(params, max_grad_norm=1.0))
    pair = Pair(case)
    pair.released.max_grad_norm = 2.0
    before = [param.detach().clone() for param in pair.params]
    with pytest.raises(RuntimeError, match=r"max_grad_norm=2.0 .*enable_gradient_release"):
        pair.model(gradients_of(pair.params, 0)).backward()
    assert all(torch.equal(old, new) for old, new in zip(before, pair.params, strict=True))


def test_clipping_each_gradient_is_not():
    params, twins = make_params(), make_params()
    released, waiting = (AdamWeightDecay(own, clipnorm=1e-3) for own in (params, twins))
    model = Sum(params)
    enable_gradient_release(model, released)
    made = gradients_of(params, 0)
    for twin, own in zip(twins, made, strict=True):
        twin.grad = own.clone()
    model(made).backward()
    released.step()
    waiting.step()
    assert_same(released, params, waiting, twins)


WRONG = [
    ("not a module", lambda m, o: (m.parameters(), o), TypeError, "model should be .*Module"),
    (
        "another optimizer",
        lambda m, o: (m, torch.optim.AdamW(m.parameters())),
        TypeError,
        "optimizer should be one of fusedstep.*AdamW",
    ),
    (
        "another model",
        lambda m, o: (nn.Linear(2, 2), o),
        ValueError,
        "model: parameter 0 of group 0 .* not one of its parameters",
    ),
]


@pytest.mark.parametrize(
    ("make", "error", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_wrong_arguments_are_refused(make, error, words):
    model = nn.Linear(3, 3)
    optimizer = fusedstep.optim.AdamW(model.parameters())
    with pytest.raises(error, match=words):
        enable_gradient_release(*make(model, optimizer))
    assert not hooks_of([p for p in model.parameters() if p._post_accumulate_grad_hooks])


def test_enabling_twice_is_refused():
    pair = Pair(adamw())
    with pytest.raises(RuntimeError, match=r"released already.*remove"):
        enable_gradient_release(pair.model, pair.released)


def test_a_wrong_gradient_is_refused_by_name():
    model = nn.EmbeddingBag(4, 3, sparse=True, mode="sum")
    optimizer = fusedstep.optim.Adafactor(model.parameters())
    enable_gradient_release(model, optimizer)
    with pytest.raises(RuntimeError, match=r"sparse gradients: parameter 0 of group 0"):
        model(torch.tensor([[0, 1]])).sum().backward()
    assert not optimizer.state


def test_backward_holds_one_gradient_at_a_time():
    """Bytes, as torch's allocator sees them: of all gradients, and of one or two."""
    layers, size = 16, 4 * 256 * 256

    def peak(released):
        model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(layers)))
        optimizer = fusedstep.optim.AdamW(model.parameters())
        if released:
            enable_gradient_release(model, optimizer)
        for _ in range(2):  # the first step makes states
            optimizer.zero_grad()
            loss = model(torch.ones(2, 256)).sum()
            with Allocations("cpu") as seen:
                loss.backward()
            optimizer.step()
        return seen.most

    assert peak(released=False) >= layers * size
    assert peak(released=True) <= 2.5 * size
