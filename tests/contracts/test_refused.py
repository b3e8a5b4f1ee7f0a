"""A step that refuses its input changes nothing: parameters, gradients, states, counters, groups.
After the repair the step can be taken."""

import copy

import pytest
import torch

import fusedstep.hf
from tests.support.cases import CASES, each, make_params, set_grads
from tests.support.damages import BAD, DAMAGES, NAMES, ONLY, SHAPES, WHERE, Snapshot

ONE = [case for case in CASES if case.name in ("adamw", "old-adamw", "adafactor", "hf-adafactor")]
TABLE = [
    (case, name, damage)
    for case in ONE
    for name, damage in {**DAMAGES, **ONLY.get(case.name, {})}.items()
    # hf.Adafactor uses relative_step here, so it does not read lr.
    if not (case.name == "hf-adafactor" and name.startswith("group: lr"))
]


@pytest.mark.parametrize(
    ("case", "name", "damage"), TABLE, ids=[f"{case}-{name}" for case, name, _ in TABLE]
)
def test_a_refused_step_changes_nothing(case, name, damage):
    change, kind, *words = damage
    runs = []
    for damaged in (True, False):
        params = make_params(SHAPES)
        optimizer = case.make(list(zip(NAMES, params, strict=True)))
        set_grads(params, 0)
        optimizer.step()
        set_grads(params, 1)
        if damaged:
            repair = change(optimizer, params)
            before = Snapshot(optimizer, params)
            for _ in range(2):  # a caller may try again
                with pytest.raises(kind) as error:
                    optimizer.step()
                text = str(error.value)
                assert all(word in text for word in words), text
                before.assert_nothing_changed()
            repair()
        optimizer.step()
        runs.append(params)
    assert all(map(torch.equal, *runs))


def other_layout(params):
    params[BAD] = torch.nn.Parameter(torch.ones(5, 6).to_sparse_csr())
    params[BAD].grad = torch.ones(5, 6).to_sparse_csr()


def nested(params):
    parts = [torch.ones(2, 3), torch.ones(1, 3)]
    params[BAD] = torch.nn.Parameter(torch.nested.nested_tensor(parts))
    torch.nested.to_padded_tensor(params[BAD] * 2, 0.0).sum().backward()


def int_parameter(params):
    params[BAD] = torch.nn.Parameter(torch.ones(5, 6, dtype=torch.int64), requires_grad=False)
    params[BAD].grad = torch.ones(5, 6, dtype=torch.int64)


def on_meta(params):
    params[BAD] = torch.nn.Parameter(torch.ones(5, 6, device="meta"))
    params[BAD].grad = torch.ones(5, 6, device="meta")


def expanded_parameter(params):
    params[BAD].data = torch.ones(6).expand(5, 6)


def overlapping_parameter(params):
    params[BAD].data = torch.ones(10).as_strided((5, 6), (1, 1))


FIRST = {
    other_layout: (RuntimeError, "sparse_csr"),
    nested: (TypeError, "is a nested tensor", "Make each of its parts a parameter"),
    int_parameter: (TypeError, "torch.int64"),
    on_meta: (RuntimeError, "meta"),
    expanded_parameter: (RuntimeError, "share memory", ".clone()"),
    overlapping_parameter: (RuntimeError, "share memory", ".clone()"),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse", "ignore:.*[Nn]ested")
@pytest.mark.parametrize("spoil", FIRST, ids=lambda spoil: spoil.__name__)
@each(ONE)
def test_a_refused_first_step_makes_no_state(case, spoil):
    kind, *words = FIRST[spoil]
    params = make_params(SHAPES)
    set_grads(params, 0)
    spoil(params)
    optimizer = case.make(list(zip(NAMES, params, strict=True)))
    before = Snapshot(optimizer, params[:BAD])
    with pytest.raises(kind) as error:
        optimizer.step()
    assert all(word in str(error.value) for word in (*WHERE, *words)), str(error.value)
    before.assert_nothing_changed()
    assert not optimizer.state


CHECKPOINTS = [
    ("adafactor", "adamw", "group 0 has no beta2_decay"),
    ("adafactor", "hf-adafactor", "group 0 has no beta2_decay"),
    ("hf-adafactor", "adafactor", "group 0 has no clip_threshold"),
    ("adamw", "adafactor", "group 0 has no betas"),
    ("old-adamw", "adafactor", "group 0 has no betas"),
]


@pytest.mark.parametrize(("ours", "others", "said"), CHECKPOINTS)
def test_a_checkpoint_of_another_optimizer_is_refused_by_the_step(ours, others, said):
    cases = {case.name: case for case in CASES}
    params = make_params(SHAPES)
    set_grads(params, 0)
    other = cases[others].make_peer(params)
    other.step()
    optimizer = cases[ours].make(make_params(SHAPES))
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    params = optimizer.param_groups[0]["params"]
    set_grads(params, 0)
    before = Snapshot(optimizer, params)
    with pytest.raises(KeyError, match=said):
        optimizer.step()
    before.assert_nothing_changed()


@each(ONE)
def test_a_checkpoint_without_counters_is_not_loaded(case):
    """Such as one of SGD."""
    params = make_params(SHAPES)
    other = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    set_grads(params, 0)
    other.step()
    optimizer = case.make(params)
    optimizer.step()
    before = Snapshot(optimizer, params)
    with pytest.raises(KeyError, match=r"parameter 0 of group 0.*no step counter.*momentum_buffer"):
        optimizer.load_state_dict(other.state_dict())
    before.assert_nothing_changed()
    for nothing in ([1, 2], None, "state"):
        with pytest.raises(TypeError, match="state_dict should be a dict"):
            optimizer.load_state_dict(nothing)
    before.assert_nothing_changed()


def test_clipping_with_a_scale_is_refused_before_states_are_made():
    params = make_params(SHAPES)
    optimizer = fusedstep.hf.AdamWeightDecay(params, clipnorm=1.0)
    set_grads(params, 0)
    optimizer.grad_scale = torch.tensor(4.0)
    before = Snapshot(optimizer, params)
    with pytest.raises(RuntimeError, match="still multiplied by grad_scale"):
        optimizer.step()
    before.assert_nothing_changed()
