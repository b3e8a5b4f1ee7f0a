"""However a parameter or gradient lies in memory: the same bits as plainly, and it stays there."""

import pytest
import torch

import fusedstep.optim
from tests.support.cases import CASES, assert_same, each

SHAPES = [(6, 5), (33, 17), (300, 270), (3, 5, 7), (4, 3, 2, 5), (25,), (1, 9), (9, 1), ()]


def plain(x):
    return x.clone(memory_format=torch.contiguous_format)


def transposed(x):
    return plain(x.mT).mT if x.dim() > 1 else plain(x)


def channels_last(x):
    return x.clone(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def reversed_dims(x):
    order = tuple(reversed(range(x.dim())))
    return plain(x.permute(order)).permute(order)


def sliced(x):
    """A part of a larger tensor along its last dimension: gaps between the rows."""
    if not x.dim():
        return plain(x)
    large = x.new_full((*x.shape[:-1], x.shape[-1] + 5), 7.0)
    return large[..., 2 : 2 + x.shape[-1]].copy_(x)


def every_second(x):
    return x.new_full((*x.shape, 2), 7.0)[..., 0].copy_(x)


def misaligned(x):
    """One element behind a 16-byte boundary."""
    return x.new_full((x.numel() + 1,), 7.0)[1:].view(x.shape).copy_(x)


def odd_strides_of_size_one(x):
    """A stride that is never used may be anything."""
    strides = [
        stride if size > 1 else 1000 + i
        for i, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True))
    ]
    return plain(x).as_strided(x.shape, strides)


LAYOUTS = [
    transposed,
    channels_last,
    reversed_dims,
    sliced,
    every_second,
    misaligned,
    odd_strides_of_size_one,
]


def start(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def gradients(step, dtype):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def run(case, dtype, of_param=plain, of_grad=plain, steps=3):
    params = [torch.nn.Parameter(of_param(x)) for x in start(dtype)]
    optimizer = case.make(params)
    for step in range(steps):
        for param, grad in zip(params, gradients(step, dtype), strict=True):
            param.grad = of_grad(grad)
        places = [(p.data_ptr(), p.stride(), p._version) for p in params]
        grads = [(p.grad, p.grad.stride(), p.grad._version, p.grad.clone()) for p in params]
        optimizer.step()
        for param, (address, strides, version) in zip(params, places, strict=True):
            assert (param.data_ptr(), param.stride()) == (address, strides)
            assert param._version > version
        for param, (grad, strides, version, values) in zip(params, grads, strict=True):
            assert param.grad is grad
            assert (grad.stride(), grad._version) == (strides, version)
            assert torch.equal(grad, values)
    return optimizer, params


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@each(CASES)
def test_any_layout_gives_the_bits_of_the_plain_one(case, layout, dtype):
    expected = run(case, dtype)
    assert_same(*run(case, dtype, of_param=layout), *expected)
    assert_same(*run(case, dtype, of_grad=layout), *expected)
    assert_same(*run(case, dtype, of_param=layout, of_grad=layout), *expected)


@each(CASES)
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
@each(CASES)
def test_an_expanded_gradient_equals_its_copy(case, shape):
    """`x.sum().backward()` leaves a gradient of stride 0: torch's fused step reads past its end."""
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


@each(CASES)
def test_a_layout_may_change_between_steps(case):
    """`model.to(memory_format=...)` after a few steps leaves states in the former order."""
    expected = run(case, torch.float32, steps=4)
    params = [torch.nn.Parameter(plain(x)) for x in start(torch.float32)]
    optimizer = case.make(params)
    for step, layout in enumerate([plain, transposed, reversed_dims, sliced]):
        for param, grad in zip(params, gradients(step, torch.float32), strict=True):
            param.data = layout(param.data)
            param.grad = plain(grad)
        optimizer.step()
    assert_same(optimizer, params, *expected)


@each(CASES)
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
    """torch negates lazily: such a gradient lies in memory with the wrong sign."""
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
