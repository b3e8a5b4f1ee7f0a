"""Splits a model's parameters into two groups: those that decay and those that do not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from typing import Any

from torch import Tensor, nn

from .. import check

# Matches bias, in_proj_bias, bias_ih_l0, attention_biases, relative_attention_bias.weight.
BIAS = re.compile(r"(^|[._])bias(es)?\d*([._]|$)", re.IGNORECASE)
# Matches the classes LayerNorm, BatchNorm2d, LlamaRMSNorm, T5LayerNORM, GroupNormalization.
NORM = re.compile(r"([Nn]orm|NORM)(alization)?(?![a-z])")
# Layers that are never normalization layers, whatever the names of their subclasses.
WEIGHTED = (nn.Embedding, nn.EmbeddingBag, nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


def param_groups(
    model: nn.Module,
    weight_decay: float,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Returns a group that decays, then one that does not, for any optimizer. The first line that
    matches decides:

        include matches the name                                 decays
        exclude matches the name                                 does not
        a bias, or a parameter of a normalization layer          does not
        any other parameter                                      decays

    A bias has the word `bias` in its full name, which includes the names of the modules around it.
    A normalization layer is a module with the word `norm` in the name of its class or of a base
    class, such as ``LayerNorm`` and ``LlamaRMSNorm``. Modules inside it are judged by their own
    class.

    Groups hold (name, parameter) pairs, in the order of ``model.named_parameters()``. Parameters
    that do not require a gradient are left out, and so is an empty group. A tied parameter appears
    once, under its first name; a line matches if it matches any of its names.

    Arguments:
        model: the module whose parameters are grouped.
        weight_decay: the decay of the first group, 0 or more. The second one has 0.
        include: a regular expression or several, searched in the full name.
        exclude: the same.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
        >>> for group in param_groups(model, weight_decay=0.01):
        ...     print(group["weight_decay"], [name for name, _ in group["params"]])
        0.01 ['0.weight']
        0.0 ['0.bias', '1.weight', '1.bias']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model should be a torch.nn.Module but is: {type(model).__name__}. Pass the model "
            "itself, not its parameters: its modules and names decide what decays."
        )
    weight_decay = check.number(weight_decay, "weight_decay")
    if not (isinstance(weight_decay, Real) and 0.0 <= weight_decay < math.inf):
        raise ValueError(
            f"weight_decay should be a finite number of 0 or more but is: {weight_decay!r}"
        )
    included, excluded = matcher(include, "include"), matcher(exclude, "exclude")
    decayed: list[tuple[str, Tensor]] = []
    spared: list[tuple[str, Tensor]] = []
    for param, places in _places(model).items():
        names = [name for name, _ in places]
        if any(map(included, names)):
            decays = True
        elif any(map(excluded, names)):
            decays = False
        else:
            decays = not any(_is_bias(name) or _is_norm(owner) for name, owner in places)
        (decayed if decays else spared).append((names[0], param))
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(
            f"model has no parameter that requires a gradient: {type(model).__name__}. Unfreeze "
            "parameters with .requires_grad_() first."
        )
    return groups


def _places(model: nn.Module) -> dict[Tensor, list[tuple[str, nn.Module]]]:
    """Each parameter to be trained, with all its names and the module that has it by that name."""
    places: dict[Tensor, list[tuple[str, nn.Module]]] = {}
    for prefix, module in _paths(model, "", ()):
        own = module.named_parameters(prefix, recurse=False, remove_duplicate=False)
        for name, param in own:
            if param.requires_grad:
                places.setdefault(param, []).append((name, module))
    return places


def _paths(
    module: nn.Module, prefix: str, above: tuple[nn.Module, ...]
) -> Iterator[tuple[str, nn.Module]]:
    """Every module by every name it has. torch's `named_modules` does not end if a module is inside
    itself."""
    yield prefix, module
    above = (*above, module)
    for name, child in module._modules.items():  # named_children() leaves out second names
        if child is not None and child not in above:
            yield from _paths(child, f"{prefix}.{name}" if prefix else name, above)


def _is_bias(name: str) -> bool:
    return BIAS.search(name) is not None


def _is_norm(module: nn.Module) -> bool:
    known = not isinstance(module, WEIGHTED)
    return known and any(NORM.search(kind.__name__) for kind in type(module).__mro__)


def matcher(patterns: str | Iterable[str] | None, argument: str) -> Callable[[str], bool]:
    """A function that tells whether one of the expressions is found in a name."""
    if patterns is None:
        patterns = ()
    elif isinstance(patterns, str):
        patterns = (patterns,)
    elif not isinstance(patterns, Iterable):
        raise TypeError(
            f"{argument} should be a regular expression or a list of them but is: {patterns!r}"
        )
    expressions = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} should hold strings but holds: {pattern!r}")
        try:
            expressions.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(
                f"{argument} holds {pattern!r}, which is no regular expression: {error}. Write "
                "re.escape(...) around a literal name."
            ) from None
    return lambda name: any(expression.search(name) for expression in expressions)
