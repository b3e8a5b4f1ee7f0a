"""Defines a rule: its texts, the letters of its states, its host scalars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from . import numbers

# The usual dtypes of parameter, gradient and states in training.
USUAL = (
    ("float32", "float32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "bfloat16", "float32"),
)
# Rules that large models are trained with also meet float32 parameters whose gradients were added
# up or sent in bfloat16, and models that are wholly in float16. Each entry costs a kernel for each
# rule, so other rules do not have them.
LARGE_MODELS = (
    *USUAL,
    ("float32", "bfloat16", "float32"),
    ("float16", "float16", "float16"),
    ("float16", "float16", "float32"),
)


class RuleError(ValueError):
    """A rule has a mistake. The message names the rule, file and line."""


@dataclass(frozen=True)
class Rule:
    """One update rule.

    `functions` are the rule's texts; the first is the elementwise update. An argument named in
    `scalars` is a host scalar, the same for a whole tensor; any other argument is a value. `states`
    are the letters of the states that are as large as the parameter.
    `factored` rules also keep `row` and `col`, and sum over the tensor before they update it. The
    update of any other rule takes `p`, `g`, the states and all scalars, in this order, and returns
    `p` and the states.
    Rules of one `family` share everything except the update, and are one struct in C++.
    Each of `dtypes` has its own CUDA kernel, and so has each of `stored`, which are names of codes
    in `rules/layout.py`; one more kernel takes anything. csrc/cuda/factored.cu lists the kernels of
    factored rules. If `only_dtypes`, slots are never stored by other codes. If `in_blocks`, a CPU
    has loops for states of 8 bits; those of other rules go through buffers, which takes two to
    three times as long.
    """

    name: str
    states: tuple[str, ...]
    scalars: tuple[str, ...]
    functions: tuple[Callable[..., object], ...]
    family: str = ""
    factored: bool = False
    dtypes: tuple[tuple[str, ...], ...] = USUAL
    stored: tuple[tuple[str, ...], ...] = ()
    only_dtypes: bool = False
    in_blocks: bool = False

    @property
    def update(self) -> Any:
        return self.functions[0]

    def row(self, values: Mapping[str, Any]) -> list[Any]:
        """The host scalars in the rule's order."""
        if len(values) == len(self.scalars):
            try:
                return [values[name] for name in self.scalars]
            except KeyError:
                pass
        wrong = [f"misses {name!r}" for name in self.scalars if name not in values]
        wrong += [f"does not know {name!r}" for name in values if name not in self.scalars]
        raise KeyError(f"rule {self.name!r} {' and '.join(wrong)}: its scalars are {self.scalars}")

    def check(self) -> None:
        """Raises if walkers could not call the update."""
        code = self.update.__code__
        names = code.co_varnames[: code.co_argcount]
        wanted = ("p", "g", *self.states, *self.scalars)
        if self.factored:
            values = ("p", *self.states, "u", "step_size", "decay")
            wanted = (*values, *names[len(values) :])
            unknown = [name for name in names[len(values) :] if name not in self.scalars]
            if unknown:
                raise RuleError(f"{at(self, self.update)}: {unknown[0]!r} is none of its scalars")
        if names != wanted:
            raise RuleError(
                f"{at(self, self.update)}: the update takes ({', '.join(names)}), and should take "
                f"({', '.join(wanted)}): values, states, scalars"
            )


def at(rule: Rule, function: Any, line: int | None = None) -> str:
    """Where a text is, for an error message."""
    code = function.__code__
    return f"rule {rule.name!r}, {code.co_filename}:{line or code.co_firstlineno}"


def called_by(function: Any) -> dict[str, FunctionType]:
    """The functions that a text or a formula calls, except the named operations."""
    found = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {
        name: called
        for name, called in found.items()
        if isinstance(called, FunctionType) and called.__globals__ is not vars(numbers)
    }
