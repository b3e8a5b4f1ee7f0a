"""A step refuses what it cannot update, with the parameter's name, before anything has changed."""

import pytest
import torch

import fusedstep.optim
from tests.support.cases import (
    CASES,
    FIXED,
    HF,
    NUMBERS,
    Case,
    each,
    make_params,
    set_grads,
    states,
)
from tests.support.rule_cases import FACTORED, WITH_STATES, once_a_kind

SHAPES = [(4, 3), (7,), (5, 6)]
BAD = 2  # the index of the parameter that each test damages
NAMES = ["fc.weight", "fc.bias", "head.weight"]


def snapshot(optimizer, params):
    kept = [(p, p.detach().clone()) for p in params if p.device.type != "meta"]
    own = [
        {k: v.clone() for k, v in states(optimizer, p).items()}
        for p in params
        if optimizer.state.get(p) and p.device.type != "meta"
    ]
    return kept, own, sum(map(bool, optimizer.state.values()))


def refused(optimizer, params, kind, *words):
    """The step raises `kind`, names parameter and reason, and leaves everything as it was."""
    kept, own, count = snapshot(optimizer, params)
    with pytest.raises(kind) as error:
        optimizer.step()
    text = str(error.value)
    for word in words:
        assert word in text, text
    now_kept, now_own, now_count = snapshot(optimizer, params)
    assert all(torch.equal(old, now) for (_, old), (_, now) in zip(kept, now_kept, strict=True))
    assert len(own) == len(now_own)
    for old, now in zip(own, now_own, strict=True):
        assert old.keys() == now.keys()
        assert all(torch.equal(old[key], now[key]) for key in old)
    assert now_count == count


def ready(case, bad=None, steps=0, **more):
    """An optimizer with named parameters and gradients. The parameter at BAD becomes `bad`."""
    params = make_params(SHAPES)
    if bad is not None:
        params[BAD] = bad
    optimizer = case.make(list(zip(NAMES, params, strict=True)), **more)
    for step in range(steps):
        set_grads(params, step)
        optimizer.step()
    set_grads(params[:BAD], 0)
    if bad is None:
        set_grads(params, 0)
    return optimizer, params


WHERE = ("parameter 2 of group 0", "'head.weight'", "(5, 6)")


@once_a_kind
def test_meta_parameters(case):
    bad = torch.nn.Parameter(torch.ones(5, 6, device="meta"))
    optimizer, params = ready(case, bad)
    bad.grad = torch.ones(5, 6, device="meta")
    refused(optimizer, params, RuntimeError, *WHERE, "torch.float32", "meta")


@once_a_kind
def test_integer_parameters(case):
    bad = torch.nn.Parameter(torch.ones(5, 6, dtype=torch.int64), requires_grad=False)
    optimizer, params = ready(case, bad)
    bad.grad = torch.ones(5, 6, dtype=torch.int64)
    refused(
        optimizer, params, TypeError, *WHERE, "torch.int64", "expected one of", "torch.bfloat16"
    )


@once_a_kind
def test_expanded_parameters(case):
    bad = torch.nn.Parameter(torch.ones(6).expand(5, 6))
    optimizer, params = ready(case, bad)
    bad.grad = torch.ones(5, 6)
    refused(optimizer, params, RuntimeError, *WHERE, "share memory", ".clone()")


@once_a_kind
def test_a_gradient_of_another_shape(case):
    optimizer, params = ready(case)
    params[BAD].grad = torch.ones(5, 6)
    params[BAD].data = torch.ones(6, 5)
    refused(
        optimizer,
        params,
        RuntimeError,
        "parameter 2 of group 0",
        "gradient has shape (5, 6)",
        "(6, 5)",
    )


def state_key(optimizer, param):
    """The key of a state that is a tensor with dimensions."""
    return next(k for k, v in states(optimizer, param).items() if k not in NUMBERS and v.dim())


@pytest.mark.parametrize("after_more_steps", [False, True])
@each(WITH_STATES)
def test_a_state_of_another_shape(case, after_more_steps):
    optimizer, params = ready(case, steps=2 if after_more_steps else 1)
    key = state_key(optimizer, params[BAD])
    optimizer.state[params[BAD]][key] = torch.zeros(3)
    refused(optimizer, params, RuntimeError, *WHERE, f"state '{key}' has shape (3,)", "expected (")


@pytest.mark.parametrize(
    ("value", "kind"), [(1.5, TypeError), (torch.zeros(1, dtype=torch.int32), None)]
)
@each(WITH_STATES)
def test_a_state_that_is_no_float_tensor(case, value, kind):
    optimizer, params = ready(case, steps=1)
    key = state_key(optimizer, params[BAD])
    shape = optimizer.state[params[BAD]][key].shape
    bad = value if kind else value.expand(shape).clone()
    optimizer.state[params[BAD]][key] = bad
    kept = [p.detach().clone() for p in params]
    with pytest.raises(TypeError, match=f"head.weight.*state '{key}'"):
        optimizer.step()
    assert all(map(torch.equal, params, kept))


@each([case for case in CASES if case.name in ("adamw", "hf-adafactor")])
def test_an_option_switched_on_after_the_first_step_lacks_its_state(case):
    """A KeyError with the state's name, as in the peers."""
    optimizer, params = ready(case, steps=1)
    option, value, key = ("amsgrad", True, "max_exp_avg_sq")
    if case.name == "hf-adafactor":
        option, value, key = ("beta1", 0.9, "exp_avg")
    optimizer.param_groups[0][option] = value
    refused(optimizer, params, KeyError, key)


@each(FACTORED)
def test_flat_shards_of_fsdp1(case):
    bad = torch.nn.Parameter(torch.ones(30))
    bad._fsdp_flattened = True
    optimizer, params = ready(case, bad)
    bad.grad = torch.ones(30)
    refused(optimizer, params, RuntimeError, "'head.weight'", "(30,)", "FSDP1", "AdamW")


@pytest.mark.parametrize("steps", [0, 1])
@each(FACTORED)
def test_a_group_of_matrices_replaced_by_one_flat_vector(case, steps):
    """As ZeRO does."""
    optimizer, params = ready(case, steps=steps)
    flat = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in params]))
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0].pop("param_names")
    optimizer.param_groups[0]["params"] = [flat]
    refused(
        optimizer, [flat, *params], RuntimeError, "parameter 0 of group 0", "(49,)", "flat", "AdamW"
    )


# torch's take sparse gradients.
TAKE_SPARSE = (fusedstep.optim.Adagrad, fusedstep.optim.SGD)


@each([case for case in CASES if case.ours in TAKE_SPARSE])
def test_sparse_gradients_that_only_the_peer_takes(case):
    optimizer, params = ready(case)
    params[BAD].grad = params[BAD].grad.to_sparse()
    name = f"does not support sparse gradients here, use torch.optim.{case.ours.__name__}"
    refused(optimizer, params, RuntimeError, *WHERE, name)


@each(
    [
        case
        for case in CASES
        if case.ours not in TAKE_SPARSE and not case.peer.__module__.startswith("tests.")
    ]
)
def test_sparse_gradients_get_the_peers_error(case):
    texts = []
    for make in (case.make_peer, case.make):
        params = make_params(SHAPES)
        optimizer = make(params)
        set_grads(params, 0)
        params[BAD].grad = params[BAD].grad.to_sparse()
        before = [p.detach().clone() for p in params]
        with pytest.raises(RuntimeError, match="does not support sparse gradients") as error:
            optimizer.step()
        texts.append(str(error.value))
    # torch's error names AdamW before 2.7 and Adam since, when AdamW became a subclass of Adam.
    assert texts[1].startswith(texts[0].rstrip(".").replace("AdamW", "Adam"))
    assert "parameter 2 of group 0" in texts[1]
    assert all(map(torch.equal, params, before))
    assert not any(optimizer.state.values())


@pytest.mark.parametrize("name", ["nonsense", "rocm", "", 3])
@once_a_kind
def test_a_backend_that_does_not_exist(case, name):
    with pytest.raises(ValueError, match=r"backend should be one of 'auto', 'cpu'.* but is: "):
        case.make(make_params(SHAPES), backend=name)


@pytest.mark.parametrize("steps", [0, 2])
@once_a_kind
def test_a_backend_variable_that_names_nothing(case, steps, monkeypatch):
    optimizer, params = ready(case)
    monkeypatch.setenv("FUSEDSTEP_BACKEND", "nonsense")
    refused(optimizer, params, ValueError, "FUSEDSTEP_BACKEND", "'nonsense'", "'cpu'")
    monkeypatch.setenv("FUSEDSTEP_BACKEND", "reference")
    for _ in range(steps):
        optimizer.step()
    if case.has_counter and case.starts_empty:
        found = [state["step"] for state in optimizer.state.values()]
        assert found == (steps > 0) * [steps] * len(params)


def test_a_step_that_cannot_be_differentiated_through():
    with pytest.raises(
        RuntimeError, match=r"differentiable=True is not supported.*torch\.optim\.AdamW"
    ):
        fusedstep.optim.AdamW(make_params(SHAPES), differentiable=True)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_no_lr_without_relative_step(when):
    case = Case("hf", HF, HF, {"lr": None, **FIXED} if when == "at once" else {})
    optimizer, params = ready(case, steps=0 if when == "at once" else 1)
    optimizer.param_groups[0]["relative_step"] = False
    refused(optimizer, params, ValueError, "lr=None needs relative_step=True")


def test_capturable_on_the_cpu_is_torchs_error():
    case = Case("capturable", fusedstep.optim.AdamW, torch.optim.AdamW, {"capturable": True})
    optimizer, params = ready(case)
    refused(
        optimizer,
        params,
        AssertionError,
        "capturable=True",
        "parameter 0 of group 0",
        "'fc.weight'",
    )


def test_fused_complex_parameters_are_torchs_error():
    case = Case("fused", fusedstep.optim.AdamW, torch.optim.AdamW, {"fused": True})
    bad = torch.nn.Parameter(torch.ones(5, 6, dtype=torch.complex64))
    optimizer, params = ready(case, bad)
    bad.grad = torch.ones_like(bad)
    refused(optimizer, params, RuntimeError, *WHERE, "`fused=True` requires")


@once_a_kind
def test_a_refused_step_can_be_taken_after_the_repair(case):
    optimizer, params = ready(case)
    expected, expected_params = ready(case)
    expected.step()
    grad = params[BAD].grad
    params[BAD].grad = grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    params[BAD].grad = grad
    optimizer.step()
    assert all(map(torch.equal, params, expected_params))


def test_parameters_of_another_layout():
    param = torch.nn.Parameter(torch.ones(5, 6).to_sparse_csr())
    param.grad = torch.ones(5, 6).to_sparse_csr()
    optimizer = fusedstep.optim.AdamW([("head.weight", param)])
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0 \('head.weight'.*sparse_csr"):
        optimizer.step()
    assert not optimizer.state
