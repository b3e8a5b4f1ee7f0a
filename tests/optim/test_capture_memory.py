"""Memory that a captured graph and later plans share. Copies and checkpoints of such optimizers."""

import copy
import pickle

import pytest
import torch

from tests.support.cases import make_params, set_grads
from tests.support.fake_device import (
    ADAFACTOR,
    ADAMW,
    REAL_ON_HOST,
    SHAPES,
    each_torch,
    make,
    to_meta,
)

# Memory that a graph and later plans share.


@pytest.mark.parametrize("kind", [ADAMW, ADAFACTOR])
def test_later_plans_count_where_the_first_one_did(kind):
    params = make_params([(3,), (4, 5), (6,)])
    optimizer = kind(params)
    set_grads(params, 0)
    optimizer.step()
    first, counters = (
        optimizer._plan.counters.flats[0],
        [optimizer.state[p]["step"] for p in params],
    )

    optimizer._plan = None
    optimizer.step()
    assert optimizer._plan.counters.flats[0].data_ptr() == first.data_ptr()
    params[0].grad = None  # the parameter stays in the plan, but its counter does not count
    optimizer.step()
    assert optimizer._plan.counters.flats[0].data_ptr() == first.data_ptr()
    assert all(optimizer.state[p]["step"] is c for p, c in zip(params, counters, strict=True))
    assert first.tolist() == [2.0, 3.0, 3.0]

    set_grads(params, 1)
    params[1].grad = None
    optimizer.step()
    assert first.tolist() == [3.0, 3.0, 4.0]
    optimizer._plan = None
    optimizer.step()  # there is a gap, so the other counters must move
    assert first.tolist() == [3.0, 3.0, 4.0]
    assert [optimizer.state[p]["step"].item() for p in params] == [4.0, 3.0, 5.0]


def test_counters_in_another_order_get_memory_of_their_own():
    params = make_params([(3,), (4, 5)])
    optimizer = ADAMW(params)
    set_grads(params, 0)
    optimizer.step()
    first = optimizer._plan.counters.flats[0]
    optimizer.param_groups[0]["params"].reverse()
    optimizer.state[params[0]]["step"].fill_(7.0)
    optimizer.step()
    assert optimizer._plan.counters.flats[0].data_ptr() != first.data_ptr()
    assert [optimizer.state[p]["step"].item() for p in params] == [8.0, 2.0]


def test_counters_that_are_one_tensor_are_counted_apart():
    params = make_params([(3,), (4,)])
    optimizer = ADAMW(params)
    set_grads(params, 0)
    optimizer.step()
    optimizer.state[params[0]]["step"] = optimizer.state[params[1]]["step"]
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2.0, 2.0]


def test_a_backend_is_told_when_a_cell_of_the_table_was_written(recorder):
    params = make_params([(3,), (4,)])
    optimizer = ADAMW(params, backend="recorder")

    def changed():
        optimizer.step()
        (bucket,) = optimizer._plan.buckets
        changed, bucket.table_changed = bucket.table_changed, False
        return changed

    set_grads(params, 0)
    assert changed()
    assert not changed()
    kept = params[1].grad
    params[1].grad = kept.clone()
    assert changed()
    assert not changed()
    grads = [param.grad for param in params]
    params[0].grad = grads[0].clone()
    params[1].grad = grads[1].to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()  # the first cell may have been written before the watch saw the second
    params[1].grad = grads[1]
    assert changed()
    assert optimizer._plan.buckets[0].table[0, 1] == params[0].grad.data_ptr()


# Copies and checkpoints.


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@each_torch
def test_a_copy_of_a_captured_optimizer_goes_on_by_itself(
    name, carry, on_device, recorder, capturing
):
    on_device()
    params = make_params(SHAPES)
    optimizer = make(name, params, "reference")
    set_grads(params, 0)
    optimizer.step()
    if name != "adamw-only-lr":
        capturing.add("cpu")
        if any(REAL_ON_HOST(x) for s in optimizer.state.values() for x in s.values()):
            optimizer.step()
        assert len(optimizer._captured) == 1
        capturing.clear()
    other, twins = carry((optimizer, params))
    assert other._captured == [] and other._plan is None
    for own, own_params in ((optimizer, params), (other, twins)):
        set_grads(own_params, 1)
        own.step()
    assert all(map(torch.equal, params, twins))
    for p, q in zip(params, twins, strict=True):
        for key in {"step", *optimizer.history} & optimizer.state[p].keys():
            own, twin = optimizer.state[p][key], other.state[q][key]
            assert own == twin and own.data_ptr() != twin.data_ptr()


def test_loading_keeps_what_graphs_read(ready, capturing):
    optimizer, _ = ready()
    capturing.add("meta")
    optimizer.step()
    (plan,) = optimizer._captured
    capturing.clear()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer._captured == [plan]


def test_adafactor_stays_capturable_when_it_takes_over_torchs_checkpoint(meta):
    params, near = to_meta(make_params([(3,), (4, 5)])), make_params([(3,), (4, 5)])
    set_grads(near, 0)
    peer = torch.optim.Adafactor(near)
    peer.step()
    optimizer = ADAFACTOR(params, capturable=True, backend="recorder")
    optimizer.load_state_dict(peer.state_dict())
    assert optimizer.param_groups[0]["capturable"] is True
    optimizer.step()
    assert {s["step"].device.type for s in optimizer.state.values()} == {"meta"}


def test_torchs_adafactor_takes_over_a_checkpoint_of_ours():
    params, others = make_params([(3,), (4, 5)]), make_params([(3,), (4, 5)])
    ours, peer = ADAFACTOR(params), torch.optim.Adafactor(others)
    set_grads(params, 0)
    set_grads(others, 0)
    ours.step()
    peer.load_state_dict(ours.state_dict())
    peer.step()
    assert all(peer.state[p]["step"] == 2 for p in others)


@pytest.mark.parametrize("kind", [ADAMW, ADAFACTOR])
def test_capturable_is_refused_for_parameters_on_the_cpu(kind):
    params = make_params([(4, 5)])
    optimizer = kind([("fc.weight", params[0])], capturable=True)
    set_grads(params, 0)
    with pytest.raises(AssertionError) as error:
        optimizer.step()
    assert str(error.value).startswith(
        "If capturable=True, params and state_steps must be on supported devices: "
        f"['cuda', 'xpu']. {kind.__name__}: parameter 0 of group 0 ('fc.weight'"
    )
    assert not any(optimizer.state.values())


def test_an_option_that_is_switched_on_moves_the_counters(meta):
    params = to_meta(make_params([(3,), (4, 5)]))
    optimizer = ADAMW(params, backend="recorder")
    optimizer.step()
    assert {s["step"].device.type for s in optimizer.state.values()} == {"cpu"}
    optimizer.param_groups[0]["capturable"] = True
    for _ in range(2):
        optimizer.step()
        assert {s["step"].device.type for s in optimizer.state.values()} == {"meta"}
