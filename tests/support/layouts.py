"""Layouts that a tensor may have in memory, and steps of a case with such tensors."""

import torch

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
    """A part of a larger tensor, with gaps between the rows."""
    if not x.dim():
        return plain(x)
    large = x.new_full((*x.shape[:-1], x.shape[-1] + 5), 7.0)
    return large[..., 2 : 2 + x.shape[-1]].copy_(x)


def every_second(x):
    return x.new_full((*x.shape, 2), 7.0)[..., 0].copy_(x)


def misaligned(x):
    """Starts one element after a multiple of 16 bytes."""
    return x.new_full((x.numel() + 1,), 7.0)[1:].view(x.shape).copy_(x)


def odd_strides_of_size_one(x):
    """The stride of a dimension of size 1 is never used, so it may be any number."""
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
