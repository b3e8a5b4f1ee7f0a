"""Parameters and gradients of any layout get the same bits as contiguous ones, and do not move."""

import pytest
import torch

import fusedstep.optim
from tests.support.cases import assert_same
from tests.support.layouts import (
    LAYOUTS,
    every_second,
    gradients,
    misaligned,
    plain,
    reversed_dims,
    run,
    sliced,
    start,
    transposed,
)
from tests.support.rule_cases import once_a_rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@once_a_rule
def test_any_layout_gives_the_bits_of_the_plain_one(case, layout, dtype):
    expected = run(case, dtype)
    assert_same(*run(case, dtype, of_param=layout), *expected)
    assert_same(*run(case, dtype, of_grad=layout), *expected)
    assert_same(*run(case, dtype, of_param=layout, of_grad=layout), *expected)


@once_a_rule
def test_elements_between_those_of_a_parameter_are_not_touched(case):
    for layout in (sliced, every_second, misaligned):
        _, params = run(case, torch.float32, of_param=layout)
        for param in params:
            whole = torch.empty(0).set_(param.untyped_storage())
            outside = torch.ones_like(whole, dtype=torch.bool)
            outside.as_strided(param.shape, param.stride(), param.storage_offset()).fill_(False)
            assert (whole[outside] == 7.0).all()
            assert not (param == 7.0).any()


@pytest.mark.parametrize("shape", [(7,), (33, 17), (3, 5, 7)], ids=str)
@once_a_rule
def test_an_expanded_gradient_equals_its_copy(case, shape):
    """`x.sum().backward()` makes a gradient of stride 0. torch's fused step reads past its end."""
    outcomes = []
    for expand in (True, False):
        param = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        optimizer = case.make([param])
        for _ in range(2):
            param.grad = torch.tensor(0.25).expand(shape)
            if not expand:
                param.grad = param.grad.contiguous()
            optimizer.step()
        outcomes.append((optimizer, [param]))
    assert_same(*outcomes[0], *outcomes[1])


@once_a_rule
def test_a_layout_may_change_between_steps(case):
    """After `model.to(memory_format=...)` the states still have the old order."""
    expected = run(case, torch.float32, steps=4)
    params = [torch.nn.Parameter(plain(x)) for x in start(torch.float32)]
    optimizer = case.make(params)
    for step, layout in enumerate([plain, transposed, reversed_dims, sliced]):
        for param, grad in zip(params, gradients(step, torch.float32), strict=True):
            param.data = layout(param.data)
            param.grad = plain(grad)
        optimizer.step()
    assert_same(optimizer, params, *expected)


@once_a_rule
def test_gradients_may_change_their_layout_every_step(case):
    expected = run(case, torch.float32, steps=6)
    params = [torch.nn.Parameter(plain(x)) for x in start(torch.float32)]
    optimizer = case.make(params)
    for step in range(6):
        layout = [plain, sliced, plain, transposed, misaligned, every_second][step]
        for param, grad in zip(params, gradients(step, torch.float32), strict=True):
            param.grad = layout(grad)
        optimizer.step()
    assert_same(optimizer, params, *expected)


def test_a_gradient_that_is_read_with_the_other_sign_is_noticed():
    """torch negates lazily: such a gradient has the wrong sign in memory."""
    runs = []
    for lazy in (False, True):
        param = torch.nn.Parameter(torch.ones(8))
        optimizer = fusedstep.optim.AdamW([param], lr=0.1)
        for sign in (1.0, -1.0, 1.0):
            grad = torch.full((8,), 0.5)
            param.grad = torch._neg_view(grad) if lazy and sign < 0 else grad * sign
            optimizer.step()
        runs.append(param.detach())
    assert torch.equal(*runs)
