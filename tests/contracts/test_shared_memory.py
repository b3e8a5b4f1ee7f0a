"""Tensors that share memory are refused, with both names. Disjoint parts of one buffer are
allowed."""

import itertools
import random

import pytest
import torch
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from fusedstep import shared_memory
from fusedstep.shared_memory import Memory, find_shared, overlaps_itself
from tests.support.cases import CASES, assert_same, each, make_params, set_grads, states
from tests.support.rule_cases import WITH_STATES, once_a_kind

SHAPES = [(6, 5), (30,), (5, 6)]
NAMES = ["encoder.weight", "bias", "decoder.weight"]


def memory_of(tensors, n_written):
    starts, extents = [tensor.data_ptr() for tensor in tensors], []
    for tensor in tensors:
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        elements = 1 + sum((size - 1) * stride for size, stride in pairs)
        extents.append(elements * tensor.itemsize if tensor.numel() else 0)
    return Memory(starts, extents, n_written, lambda: tensors)


def ready(case, steps=0):
    params = make_params(SHAPES)
    optimizer = case.make(list(zip(NAMES, params, strict=True)))
    for step in range(steps + 1):
        set_grads(params, step)
        if step < steps:
            optimizer.step()
    return optimizer, params


def transposed(params):
    params[2].data = params[0].data.t()


def the_same(params):
    params[2].data = params[0].data.view(5, 6)


def strided_alike(params):
    room = torch.linspace(-1, 1, 60)
    params[0].data, params[2].data = room[::2].view(6, 5), room[::2].view(5, 6)


def one_element(params):
    room = torch.linspace(-1, 1, 59)
    params[0].data, params[2].data = room[:30].view(6, 5), room[29:].view(5, 6)


@pytest.mark.parametrize("share", [transposed, the_same, strided_alike, one_element])
@pytest.mark.parametrize("steps", [0, 1])
@once_a_kind
def test_parameters_that_share_memory_are_refused_by_both_names(case, steps, share):
    """torch's default step updates such weights twice. In its fused step, threads race for them."""
    optimizer, params = ready(case, steps)
    share(params)
    before = [param.detach().clone() for param in params]
    said = (
        r"parameter 2 of group 0 \('decoder.weight', .* shares memory with parameter 0 of group 0 "
        r"\('encoder.weight', .*use one parameter in both places.*\.clone\(\)"
    )
    with pytest.raises(RuntimeError, match=said):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    params[2].data = params[2].data.clone()
    optimizer.step()
    assert not any(map(torch.equal, params, before))


@once_a_kind
def test_a_gradient_that_is_its_parameter(case):
    optimizer, params = ready(case)
    params[2].grad = params[2].detach()
    before = [param.detach().clone() for param in params]
    with pytest.raises(RuntimeError, match=r"the gradient of parameter 2 .* with parameter 2 of"):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert not optimizer.state or not case.starts_empty


@each(WITH_STATES)
def test_states_that_share_memory(case):
    """As after code that copies state dicts but not their tensors."""
    optimizer, params = ready(case, steps=1)
    first, second = (
        next(key for key, value in states(optimizer, param).items() if value.dim())
        for param in params[1:]
    )
    room = torch.zeros(30)
    shape = optimizer.state[params[2]][second].shape
    optimizer.state[params[1]][first] = room
    optimizer.state[params[2]][second] = room[: shape.numel()].view(shape)
    said = rf"state '{second}' of parameter 2 .* shares memory with state '{first}' of parameter 1"
    with pytest.raises(RuntimeError, match=said):
        optimizer.step()


@each([case for case in CASES if case.name == "adamw"])
def test_two_states_that_are_one_tensor(case):
    optimizer, params = ready(case, steps=1)
    optimizer.state[params[1]]["exp_avg_sq"] = optimizer.state[params[1]]["exp_avg"]
    said = r"state 'exp_avg_sq' of parameter 1 .* shares memory with state 'exp_avg' of parameter 1"
    with pytest.raises(RuntimeError, match=said):
        optimizer.step()


@once_a_kind
def test_parameters_may_share_one_gradient(case):
    optimizer, params = ready(case)
    expected, alone = ready(case)
    shared = torch.linspace(-1, 1, 30)
    for param, other in zip(params, alone, strict=True):
        param.grad = shared.view(param.shape)
        other.grad = shared.view(param.shape).clone()
    optimizer.step()
    expected.step()
    assert_same(optimizer, params, expected, alone)


def flat_buffer(tensors):
    """As in DDP and ZeRO."""
    return list(_unflatten_dense_tensors(_flatten_dense_tensors(tensors), tensors))


def columns(tensors):
    """Like the parts of a fused projection."""
    return list(torch.cat(tensors, dim=1).split(5, dim=1))


def every_third(tensors):
    return list(torch.stack([tensor.reshape(-1) for tensor in tensors], dim=1).unbind(1))


def quarters(tensors):
    """The quarters of a matrix: their ranges overlap, and two share columns."""
    whole = torch.zeros(12, 12)
    parts = [whole[:6, :5], whole[6:, :5], whole[6:, 6:11]]
    return [part.copy_(tensor) for part, tensor in zip(parts, tensors, strict=True)]


@pytest.mark.parametrize("cut", [flat_buffer, columns, every_third, quarters])
@once_a_kind
def test_parts_of_one_buffer_are_updated_as_if_alone(case, cut):
    def numbers(seed):
        return make_params([(6, 5)] * 3, seed=seed)

    runs = []
    for together in (True, False):
        parts = cut([param.detach() for param in numbers(0)])
        params = [torch.nn.Parameter(part if together else part.clone()) for part in parts]
        optimizer = case.make(params)
        for step in range(2):
            grads = cut([param.detach() for param in numbers(step + 1)])
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad if together else grad.clone()
            optimizer.step()
        runs.append((optimizer, params))
    assert_same(*runs[0], *runs[1])


def test_parts_of_one_buffer_cost_a_sort(monkeypatch):
    """They are sorted, but no two of them are compared byte by byte."""
    monkeypatch.delattr(shared_memory, "_compare")
    monkeypatch.delattr(shared_memory, "_dense_overlap")
    flat = torch.zeros(40_000)
    assert find_shared(memory_of(flat.view(100, 400).split(4, 1), 100)) is None
    monkeypatch.delattr(shared_memory, "_are_columns")
    assert find_shared(memory_of(flat.split(4), 10_000)) is None


def bytes_of(tensor):
    if tensor.numel() == 0:
        return []
    places = [0]
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = [place + k * stride for place in places for k in range(size)]
    start, size = tensor.data_ptr(), tensor.itemsize
    return [start + place * size + byte for place in places for byte in range(size)]


def random_views(chosen):
    room = torch.zeros(96)
    for _ in range(chosen.randint(2, 4)):
        own = room if chosen.random() < 0.8 else room.view(torch.int16)
        while True:
            dims = chosen.randint(1, 3)
            shape = [chosen.choice([0, 1, 1, 1, 2, 2, 3, 3, 4, 4]) for _ in range(dims)]
            strides = [chosen.choice([0, 1, 2, 3, 4, 6, 8, 12, 24, 48]) for _ in range(dims)]
            start = chosen.randint(0, 90)
            if start + sum((n - 1) * k for n, k in zip(shape, strides, strict=True)) < 96:
                break
        yield own.as_strided(shape, strides, start)


def test_what_is_found_is_what_the_bytes_say():
    chosen, counts = random.Random(0), [0, 0]
    for _ in range(1500):
        tensors = list(random_views(chosen))
        n_written = chosen.randint(0, len(tensors))
        own = [bytes_of(tensor) for tensor in tensors]
        for tensor, places in zip(tensors, own, strict=True):
            assert overlaps_itself(tensor) == (len(set(places)) < len(places))
        pairs = itertools.combinations(range(len(tensors)), 2)
        shared = {(i, j) for i, j in pairs if i < n_written and not set(own[i]).isdisjoint(own[j])}
        found = find_shared(memory_of(tensors, n_written))
        assert (found in shared) if shared else (found is None), (tensors, n_written)
        counts[bool(shared)] += 1
    assert min(counts) > 150
