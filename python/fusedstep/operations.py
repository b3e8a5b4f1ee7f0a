"""The rule texts on torch tensors: their named operations, and how a text gets these and its
scalars."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .plan import devices
from .rules import Rule
from .rules.spec import called_by


def bind(rule: Rule, values: Sequence[Any]) -> Any:
    """The rule's functions with torch's operations, and one row of scalars filled in: numbers, or
    0-d tensors."""
    scalars = dict(zip(rule.scalars, values, strict=True))
    bound = {function.__name__: _bind_function(function, scalars) for function in rule.functions}
    return SimpleNamespace(**{**scalars, **bound, "update": bound[rule.update.__name__]})


def _bind_function(function: Any, scalars: dict[str, Any]) -> Callable[..., Any]:
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    own = {name: scalars[name] for name in arguments if name in scalars}

    def run(*numbers: Tensor) -> Any:
        dtype = numbers[0].dtype
        rounded = {name: _rounded(value, dtype) for name, value in own.items()}
        return _on_tensors(function, dtype)(*numbers, **rounded)

    return run


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """A scalar as the walkers compute with it. A 0-d tensor would widen what it meets instead."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    return ctypes.c_float(value).value if dtype == torch.float32 else value


def on_tensors(formula: Any) -> Callable[..., Any]:
    """A formula of host scalars, such as `rules.adamw.torch_scalars`, that takes tensors where it
    took numbers, the first of which is the step."""

    def run(step: Tensor, **options: Any) -> Any:
        # One call for a root: correctly rounded on an accelerator, and on a CPU within a unit.
        return _on_tensors(formula, step.dtype, torch.sqrt)(step, **options)

    return run


@functools.cache
def _on_tensors(function: Any, dtype: torch.dtype, root: Any = None) -> Callable[..., Any]:
    """The same code object with torch's operations, and so is what it calls. `dtype` is that of
    its numbers."""
    room = {**function.__globals__, "div": div, "sqrt": root or sqrt, "maximum": maximum}
    room |= {"minimum": minimum, "where": functools.partial(where, dtype=dtype)}
    room |= {name: _on_tensors(own, dtype, root) for name, own in called_by(function).items()}
    text = FunctionType(function.__code__, room, function.__name__, function.__defaults__)
    text.__kwdefaults__ = function.__kwdefaults__
    return text


def as_tensor(x: Any, like: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.full_like(like, x)


def div(a: Any, b: Any) -> Tensor:
    return torch.div(as_tensor(a, b), as_tensor(b, a))


def sqrt(x: Tensor) -> Tensor:
    """Correctly rounded. torch.sqrt on a CPU is one unit off for a fifth of all float32 numbers and
    for one in seventy float64 numbers (torch 2.13 with MKL, 2026-11-21)."""
    if x.dtype == torch.float64:
        return _sqrt_float64(x)
    return x.to(devices.wide(x.device)).sqrt().to(x.dtype)


def _sqrt_float64(x: Tensor) -> Tensor:
    """One Newton step on the mantissa, with the error of the square computed exactly."""
    mantissa, exponent = torch.frexp(x)
    odd = exponent % 2
    mantissa = torch.where(odd != 0, mantissa * 0.5, mantissa)
    root = mantissa.sqrt()
    high = root * 134217729.0  # 2^27 + 1 splits a float64 into halves whose products are exact
    high = high - (high - root)
    low = root - high
    error = ((mantissa - high * high) - 2.0 * high * low) - low * low
    root = (root + error / (2.0 * root)).clamp(max=1.0 - 2.0**-53)  # the root of less than one
    root = torch.ldexp(root, (exponent + odd) // 2)
    return torch.where((x > 0) & x.isfinite(), root, x.sqrt())


def maximum(a: Any, b: Any) -> Tensor:
    return torch.maximum(as_tensor(a, b), as_tensor(b, a))


def minimum(a: Any, b: Any) -> Tensor:
    return torch.minimum(as_tensor(a, b), as_tensor(b, a))


def where(condition: Any, a: Any, b: Any, dtype: torch.dtype) -> Any:
    """A plain number takes the dtype of the tensor it stands beside, two of them take `dtype`."""
    if isinstance(condition, bool):
        own, other = (a, b) if condition else (b, a)
        return as_tensor(own, other) if isinstance(other, Tensor) else own
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = torch.full_like(condition, a, dtype=dtype)
    return torch.where(condition, a, b)
