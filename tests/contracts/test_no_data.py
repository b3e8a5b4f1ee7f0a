"""Tensors without memory are refused by name: reading address 0 would crash the process."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.accumulating import ACCUMULATE
from tests.support.cases import CASES, each, make_params, set_grads

ONE_OF_A_KIND = [
    case for case in CASES if case.name in ("adamw", "old-adamw", "adafactor", "hf-adafactor")
]


def zeros_never_made(like):
    return torch._efficientzerotensor(like.shape, dtype=like.dtype)


def freed(like):
    like = like.clone()
    like.untyped_storage().resize_(0)
    return like


@pytest.mark.parametrize("lose", [zeros_never_made, freed])
@pytest.mark.parametrize("steps", [0, 2])
@each([ACCUMULATE, *ONE_OF_A_KIND])
def test_a_gradient_without_memory(case, steps, lose):
    params = make_params([(4, 8), (4, 4)])
    optimizer = case.make(params)
    for step in range(steps):
        set_grads(params, step)
        optimizer.step()
    set_grads(params, 7)
    good = params[1].grad
    params[1].grad = lose(good)
    with pytest.raises(RuntimeError, match=r"parameter 1.* its gradient holds no data"):
        optimizer.step()
    params[1].grad = good
    optimizer.step()


@each(ONE_OF_A_KIND)
def test_a_parameter_or_a_state_whose_storage_was_freed(case):
    params = make_params([(4, 8), (4, 4)])
    optimizer = case.make(params)
    set_grads(params, 0)
    optimizer.step()
    kept = dict(optimizer.state[params[1]])
    key = next(key for key, value in kept.items() if torch.is_tensor(value) and value.dim())
    optimizer.state[params[1]][key] = freed(kept[key])
    with pytest.raises(RuntimeError, match=rf"parameter 1 .*state '{key}' holds no data"):
        optimizer.step()
    optimizer.state[params[1]].update(kept)
    optimizer.step()
    params[1].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"parameter 1 .*the parameter holds no data"):
        optimizer.step()


@each([ACCUMULATE, *ONE_OF_A_KIND])
def test_fake_tensors(case):
    with FakeTensorMode():
        params = [torch.nn.Parameter(torch.ones(4, 4))]
        params[0].grad = torch.ones(4, 4)
        optimizer = case.make(params)
        with pytest.raises(RuntimeError, match="holds no data: it is a fake tensor"):
            optimizer.step()


@each([ACCUMULATE, *ONE_OF_A_KIND])
def test_real_tensors_among_fake_ones(case):
    params = make_params([(4, 8), (4, 4)])
    optimizer = case.make(params)
    set_grads(params, 0)
    optimizer.step()
    set_grads(params, 1)
    with FakeTensorMode(), pytest.raises(Exception, match=r"FakeTensor|[Ff]ake"):
        optimizer.step()
    set_grads(params, 2)
    optimizer.step()
