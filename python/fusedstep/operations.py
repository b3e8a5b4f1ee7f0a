"""Runs the rule texts on torch tensors: the named operations, and how a text gets them and its
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
    """The rule's functions on torch tensors, with one row of scalars filled in. A scalar is a
    number or a 0-d tensor."""
    scalars = dict(zip(rule.scalars, values, strict=True))
    bound = {function.__name__: _bind_function(function, scalars) for function in rule.functions}
    return SimpleNamespace(**{**scalars, **bound, "update": bound[rule.update.__name__]})


def _bind_function(function: Any, scalars: dict[str, Any]) -> Callable[..., Any]:
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    used = {name: scalars[name] for name in arguments if name in scalars}

    def run(*numbers: Tensor) -> Any:
        dtype = numbers[0].dtype
        rounded = {name: _rounded(value, dtype) for name, value in used.items()}
        return _on_tensors(function, dtype)(*numbers, **rounded)

    return run


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """Rounds a scalar as the walkers do. An unrounded 0-d float64 tensor would widen the result."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    return ctypes.c_float(value).value if dtype == torch.float32 else value


def on_tensors(formula: Any) -> Callable[..., Any]:
    """A formula of host scalars, such as `rules.adamw.torch_scalars`, made to take tensors. Its
    first argument is the step."""

    def run(step: Tensor, **options: Any) -> Any:
        # torch.sqrt is one call. It is correctly rounded on a GPU, and one unit off at most on a
        # CPU.
        return _on_tensors(formula, step.dtype, torch.sqrt)(step, **options)

    return run


@functools.cache
def _on_tensors(function: Any, dtype: torch.dtype, root: Any = None) -> Callable[..., Any]:
    """The same code object with torch's operations; so are the texts it calls. Its numbers have
    this `dtype`."""
    names = {**function.__globals__, "div": div, "sqrt": root or sqrt, "maximum": maximum}
    names |= {"minimum": minimum, "where": functools.partial(where, dtype=dtype)}
    names |= {name: _on_tensors(text, dtype, root) for name, text in called_by(function).items()}
    text = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    text.__kwdefaults__ = function.__kwdefaults__
    return text


def as_tensor(x: Any, like: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.full_like(like, x)


def div(a: Any, b: Any) -> Tensor:
    return torch.div(as_tensor(a, b), as_tensor(b, a))


def sqrt(x: Tensor) -> Tensor:
    """A correctly rounded root. On a CPU, torch.sqrt is one unit off for a fifth of all float32
    numbers and for one in seventy float64 numbers (torch 2.13 with MKL, 2026-11-21)."""
    if x.dtype == torch.float64:
        return _sqrt_float64(x)
    return x.to(devices.widest_float(x.device)).sqrt().to(x.dtype)


def _sqrt_float64(x: Tensor) -> Tensor:
    """One Newton step on the mantissa, with the error of the square computed exactly."""
    mantissa, exponent = torch.frexp(x)
    odd = exponent % 2
    mantissa = torch.where(odd != 0, mantissa * 0.5, mantissa)
    root = mantissa.sqrt()
    high = root * 134217729.0  # 2^27 + 1 splits a float64 into halves; their products are exact
    high = high - (high - root)
    low = root - high
    error = ((mantissa - high * high) - 2.0 * high * low) - low * low
    root = (root + error / (2.0 * root)).clamp(max=1.0 - 2.0**-53)  # mantissa < 1
    root = torch.ldexp(root, (exponent + odd) // 2)
    return torch.where((x > 0) & x.isfinite(), root, x.sqrt())


def maximum(a: Any, b: Any) -> Tensor:
    return torch.maximum(as_tensor(a, b), as_tensor(b, a))


def minimum(a: Any, b: Any) -> Tensor:
    return torch.minimum(as_tensor(a, b), as_tensor(b, a))


def where(condition: Any, a: Any, b: Any, dtype: torch.dtype) -> Any:
    """A number beside a tensor takes that tensor's dtype; two numbers take `dtype`."""
    if isinstance(condition, bool):
        chosen, other = (a, b) if condition else (b, a)
        return as_tensor(chosen, other) if isinstance(other, Tensor) else chosen
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = torch.full_like(condition, a, dtype=dtype)
    return torch.where(condition, a, b)
