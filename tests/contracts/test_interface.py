"""To a script, a config or a scheduler, our classes look like their peers."""

import inspect

import pytest
import torch
import transformers.optimization

import fusedstep.hf
import fusedstep.optim
from tests.support.cases import (
    ALWAYS_OURS,
    CASES,
    EXTENSIONS,
    FIXED,
    HF,
    HF_PEER,
    QUIET,
    SECOND_NAMES,
    each,
    make_params,
    set_grads,
    states,
)
from tests.support.garbage import assert_freed
from tests.support.rule_cases import once_a_kind
from tests.support.versions import adagrad_takes_later_groups

ADAMW, TORCH_ADAMW = fusedstep.optim.AdamW, torch.optim.AdamW
ADAFACTOR, TORCH_ADAFACTOR = fusedstep.optim.Adafactor, torch.optim.Adafactor
SHAPES = [(), (7,), (33, 17), (3, 5, 7)]


def extensions(ours):
    return dict(EXTENSIONS.get(ours, {}))


@pytest.mark.parametrize(
    ("ours", "peer"),
    [
        *dict.fromkeys((case.ours, case.peer) for case in CASES),
        (fusedstep.hf.AdafactorSchedule, transformers.optimization.AdafactorSchedule),
        (fusedstep.hf.get_adafactor_schedule, transformers.optimization.get_adafactor_schedule),
    ],
    ids=lambda thing: f"{thing.__module__}.{thing.__name__}",
)
def test_a_call_of_the_peer_is_a_call_of_ours(ours, peer):
    def arguments(function):
        found = inspect.signature(function).parameters.values()
        more = {*ALWAYS_OURS, *own} if function is ours else ()
        return [(p.name, p.default, p.kind) for p in found if p.name not in more]

    own = (*extensions(ours), *SECOND_NAMES.get(ours, ()))
    assert arguments(ours) == arguments(peer)
    for name in own:
        assert inspect.signature(ours).parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("ours", dict.fromkeys(case.ours for case in CASES))
def test_every_optimizer_has_our_own_arguments_last(ours):
    arguments = inspect.signature(ours).parameters
    assert tuple(arguments)[-len(ALWAYS_OURS) :] == tuple(ALWAYS_OURS)
    for name, default in ALWAYS_OURS.items():
        assert arguments[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert arguments[name].default is default


@each(CASES)
def test_every_argument_is_named_in_the_code_of_the_constructor(case):
    """accmt drops arguments that are not in `__init__.__code__`."""
    names = case.ours.__init__.__code__.co_varnames
    assert {*case.options, "params", "lr", *ALWAYS_OURS} <= set(names)


WRONG = [
    *((ADAMW, TORCH_ADAMW, options) for options in [
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": torch.ones(2)},
        {"lr": torch.tensor(1.0), "foreach": True},
        {"lr": torch.tensor(-1.0)},
        {"eps": -1e-8},
        {"betas": (1.0, 0.9)},
        {"betas": (-0.1, 0.9)},
        {"betas": (0.9, 1.5)},
        {"betas": (0.9, torch.tensor(0.9))},
        {"betas": (0, 0.9)},
        {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "foreach": True},
        {"betas": (torch.tensor([0.9]), torch.tensor([0.99])), "foreach": True},
        {"weight_decay": -0.1},
        {"fused": True, "foreach": True},
        {"fused": True, "differentiable": True},
    ]),
    *((ADAFACTOR, TORCH_ADAFACTOR, options) for options in [
        {"lr": -1.0},
        {"lr": torch.ones(2)},
        {"beta2_decay": 0.1},
        {"eps": (-1.0, 1e-3)},
        {"eps": (None, -1e-3)},
        {"d": 0.5},
        {"weight_decay": -0.1},
        {"weight_decay": float("nan")},
    ]),
    *((getattr(fusedstep.optim, name), getattr(torch.optim, name), options) for name, options in [
        ("Adam", {"betas": (0.9, 1.5)}),
        ("Adam", {"eps": -1.0}),
        ("Adam", {"fused": True, "foreach": True}),
        ("RMSprop", {"lr": torch.ones(2)}),
        ("RMSprop", {"alpha": -1.0}),
        ("RMSprop", {"eps": -1.0}),
        ("RMSprop", {"momentum": -1.0}),
        ("RMSprop", {"weight_decay": -1.0}),
        ("Adagrad", {"lr": -1.0}),
        ("Adagrad", {"lr_decay": -1.0}),
        ("Adagrad", {"weight_decay": -1.0}),
        ("Adagrad", {"initial_accumulator_value": -1.0}),
        ("Adagrad", {"eps": -1.0}),
        ("Adagrad", {"fused": True, "differentiable": True}),
        ("Adadelta", {"rho": 1.5}),
        ("Adadelta", {"eps": -1.0}),
        ("Adadelta", {"weight_decay": -1.0}),
        ("Adamax", {"betas": (-1.0, 0.9)}),
        ("Adamax", {"eps": -1.0}),
        ("RAdam", {"betas": (0.9, 1.0)}),
        ("RAdam", {"weight_decay": -1.0}),
        ("SGD", {"lr": -1.0}),
        ("SGD", {"momentum": -1.0}),
        ("SGD", {"weight_decay": -1.0}),
        ("SGD", {"nesterov": True}),
        ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        ("SGD", {"fused": True, "foreach": True}),
        ("Rprop", {"lr": -1.0}),
        ("Rprop", {"etas": (0.5, 0.9)}),
        ("NAdam", {"momentum_decay": -1.0}),
        ("NAdam", {"betas": (1.0, 0.9)}),
        ("ASGD", {"lr": -1.0}),
        ("ASGD", {"weight_decay": -1.0}),
    ]),
    *((HF, HF_PEER, options) for options in [
        {"lr": 1e-3},
        {"lr": 1e-3, "warmup_init": True},
        {"relative_step": False, "warmup_init": True},
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "peer", "options"), WRONG, ids=lambda x: str(x)[:60])
def test_wrong_options_get_the_peers_error(ours, peer, options):
    params = make_params([(2,)])
    with pytest.raises((ValueError, RuntimeError)) as expected:
        peer(params, **options)
    with pytest.raises(type(expected.value)) as found:
        ours(params, **options)
    assert str(found.value) == str(expected.value)
    assert type(found.value) is type(expected.value)


@pytest.mark.parametrize("optimizer", [ADAMW, ADAFACTOR, HF, fusedstep.hf.AdamW])
@pytest.mark.parametrize(
    "params", [[], [3], [torch.ones(2) * torch.ones(2, requires_grad=True)]], ids=str
)
def test_wrong_parameters_get_torchs_error(optimizer, params):
    with pytest.raises((ValueError, TypeError)) as expected:
        TORCH_ADAMW(params)
    more = QUIET if optimizer is fusedstep.hf.AdamW else {}
    with pytest.raises(type(expected.value)) as found:
        optimizer(params, **more)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@each(CASES)
def test_groups_and_states_look_like_the_peers(case, dtype):
    ours_params, peer_params = make_params(SHAPES, dtype), make_params(SHAPES, dtype)
    ours, peer = case.make(ours_params), case.make_peer(peer_params)
    for params, optimizer in ((ours_params, ours), (peer_params, peer)):
        set_grads(params, 0, scale=1.0)
        optimizer.step()
    for p, q in zip(ours_params, peer_params, strict=True):
        assert sorted(ours.state[p]) == sorted(peer.state[q])
        for key, other in peer.state[q].items():
            own = ours.state[p][key]
            assert type(own) is type(other), key
            if isinstance(other, torch.Tensor):
                assert (own.shape, own.dtype, own.device) == (
                    other.shape,
                    other.dtype,
                    other.device,
                ), key
    own, other = ours.state_dict(), peer.state_dict()
    assert own.keys() == other.keys()
    more = extensions(case.ours)
    if case.ours is ADAMW and not issubclass(TORCH_ADAMW, torch.optim.Adam):
        more["decoupled_weight_decay"] = True  # in torch's groups since 2.7
    assert own["param_groups"] == [group | more for group in other["param_groups"]]
    assert ours.defaults == peer.defaults | more


@each(CASES)
def test_states_are_made_when_the_peer_makes_them(case):
    params, peer_params = make_params(SHAPES), make_params(SHAPES)
    optimizer, peer = case.make(params), case.make_peer(peer_params)
    for _ in range(2):  # a step without gradients makes none
        assert bool(optimizer.state) == bool(peer.state) == (not case.starts_empty)
        for param, other in zip(params, peer_params, strict=True):
            own, wanted = states(optimizer, param), states(peer, other)
            assert own.keys() == wanted.keys()
            assert all(torch.equal(own[key], wanted[key]) for key in wanted)
        optimizer.step()
    assert optimizer.state_dict()["state"].keys() == peer.state_dict()["state"].keys()


@once_a_kind
def test_a_closure_may_call_backward_and_its_loss_is_returned(case):
    """transformers' Adafactor calls the closure with gradients disabled, and fails."""
    params = make_params(SHAPES)
    twins = make_params(SHAPES)
    optimizer, twin = case.make(params), case.make(twins)

    def closure():
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.requires_grad
    sum((p**2).sum() for p in twins).backward()
    assert twin.step() is None
    assert all(map(torch.equal, params, twins))


@once_a_kind
def test_hooks_run_around_the_step(case):
    params = make_params(SHAPES)
    optimizer = case.make(params)
    set_grads(params, 0)
    first, seen = params[1].detach().clone(), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(torch.equal(params[1], first)))
    optimizer.register_step_post_hook(lambda *_: seen.append(torch.equal(params[1], first)))
    optimizer.step()
    assert seen == [True, False]


@each(CASES)
def test_a_group_may_be_added_between_steps(case):
    if case.peer is torch.optim.Adagrad and not adagrad_takes_later_groups():
        pytest.skip("torch's own fails: it makes no states for a later group")
    ours_params, peer_params = make_params(SHAPES), make_params(SHAPES)
    ours, peer = case.make(ours_params[:2]), case.make_peer(peer_params[:2])
    for step in range(4):
        for params, optimizer in ((ours_params, ours), (peer_params, peer)):
            if step == 2:
                optimizer.add_param_group({"params": params[2:], "weight_decay": 0.5})
            set_grads(params, step)
            optimizer.step()
    for p, q in zip(ours_params, peer_params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert states(ours, p).get("step") == states(peer, q).get("step")


@once_a_kind
def test_a_parameter_may_be_given_only_once(case):
    params = make_params([(2,)])
    optimizer = case.make(params)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params})


@pytest.mark.parametrize(("optimizer", "strings", "numbers"), [
    (ADAMW, {"lr": "1e-2", "betas": ("0.8", "0.9"), "eps": "1e-8", "weight_decay": "0.1"},
     {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.1}),
    (ADAFACTOR, {"lr": "1e-2", "eps": ("1e-5", "1e-3"), "d": "2", "beta2_decay": "-0.7"},
     {"lr": 1e-2, "eps": (1e-5, 1e-3), "d": 2.0, "beta2_decay": -0.7}),
    (HF, {"lr": "1e-2", "eps": ("1e-30", "1e-3"), "beta1": "0.9", "decay_rate": "-0.7", **FIXED},
     {"lr": 1e-2, "eps": (1e-30, 1e-3), "beta1": 0.9, "decay_rate": -0.7, **FIXED}),
])  # fmt: skip
def test_numbers_given_as_strings_are_numbers(optimizer, strings, numbers):
    """YAML reads 1e-3 as a string."""
    groups = []
    for options in (strings, numbers):
        params = make_params(SHAPES)
        made = optimizer([{"params": params[:2], **options}, {"params": params[2:]}], **options)
        set_grads(params, 0)
        made.step()
        groups.append((params, made.state_dict()["param_groups"]))
    assert groups[0][1] == groups[1][1]
    assert all(map(torch.equal, groups[0][0], groups[1][0]))


@pytest.mark.parametrize(("optimizer", "options"), [
    (ADAMW, {"lr": "fast"}), (ADAFACTOR, {"eps": (None, "small")}), (HF, {"beta1": "much"}),
])  # fmt: skip
def test_other_strings_are_refused_by_name(optimizer, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} should be a number"):
        optimizer(make_params([(2,)]), **options)


@once_a_kind
def test_an_optimizer_is_freed_without_the_garbage_collector(case):
    def make():
        params = make_params(SHAPES)
        optimizer = case.make(params)
        for step in range(2):
            set_grads(params, step)
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        return optimizer, params

    assert_freed(make)


def test_old_adamw_warns_as_it_did():
    with pytest.warns(FutureWarning, match="no_deprecation_warning=True"):
        fusedstep.hf.AdamW(make_params([(2,)]))
