"""Changes to a step for the PTX tests of both GPU backends: tensors at odd addresses, faults in the
arguments of a launch, and a step that must store nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from tests.support.cases import Params, same_bits, states
from tests.support.problems import placed

Arguments = dict[str, Any]
Change = Callable[[Arguments], None]


def at_an_odd_address(slot: str) -> Callable[[Any, Params, int], None]:
    """Moves one tensor of each parameter to one element after a multiple of 16 bytes."""

    def prepare(optimizer: Any, params: Params, step: int) -> None:
        for param in params if step == 1 else ():
            state = optimizer.state[param]
            if slot == "grad":
                param.grad = placed(param.grad, 1)
            elif slot in state:
                state[slot] = placed(state[slot], 1)

    return prepare


def one_more(place: int) -> Change:
    """Adds 1 to a cell of the first tensor's row of the table."""

    def change(arguments: Arguments) -> None:
        table = arguments["table"] = arguments["table"].clone()
        table[0, place] += 1

    return change


def twice(name: str) -> Change:
    """Replaces the second entry of a list by the first one."""

    def change(arguments: Arguments) -> None:
        entries = arguments[name] = arguments[name].clone()
        entries[1] = entries[0]

    return change


def shorter(name: str) -> Change:
    def change(arguments: Arguments) -> None:
        arguments[name] = arguments[name][:-1]

    return change


def only_first(name: str) -> Change:
    """Leaves out all numbers but the first."""

    def change(arguments: Arguments) -> None:
        arguments[name] = arguments[name][:1]

    return change


def assert_stores_nothing(optimizer: Any, params: Params, counted: Counter[str]) -> None:
    """Asserts that a step that found an infinity wrote nothing."""
    before = [
        {"p": p.detach().clone(), **{k: v.clone() for k, v in states(optimizer, p).items()}}
        for p in params
    ]
    counted.clear()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert counted["thread_instructions"] and not counted["st.global.bytes"]
    for param, kept in zip(params, before, strict=True):
        for name, value in {"p": param.detach(), **states(optimizer, param)}.items():
            assert same_bits(value, kept[name])
