"""Step counters of the parameters in a plan, in the form their peer keeps them: tensors or ints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


class TensorSteps:
    """torch's counters: a 0-d tensor per parameter. Those of a plan become views of one tensor, so
    that one addition counts them all; saved, loaded or copied they are as good as any others."""

    def __init__(self, states: list[State]) -> None:
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, state in enumerate(states):
            step = state["step"]
            kinds.setdefault((step.dtype, step.device), []).append(index)
        self.flats: list[Tensor] = []
        self.order: list[int] = []
        for indices in kinds.values():
            flat = torch.stack([states[i]["step"].reshape(()) for i in indices])
            for view, i in zip(flat.unbind(), indices, strict=True):
                states[i]["step"] = view
            self.flats.append(flat)
            self.order += indices

    def next_of_all(self) -> float | None:
        """The coming step's number if it is the same for every parameter, else None."""
        if len(self.flats) != 1:
            return None
        low, high = torch.aminmax(self.flats[0])
        return low.item() + 1.0 if low == high else None

    def next_of_each(self) -> list[float]:
        values = [value + 1.0 for flat in self.flats for value in flat.tolist()]
        result = [0.0] * len(values)
        for index, value in zip(self.order, values, strict=True):
            result[index] = value
        return result

    def count(self, found_inf: Tensor | None) -> None:
        """Counts one step, unless the gradients held an infinity: then it did not take place."""
        for flat in self.flats:
            flat.add_(1.0 if found_inf is None else (found_inf == 0).to(flat))


class IntSteps:
    """transformers' counters: a Python int per parameter."""

    def __init__(self, states: list[State]) -> None:
        self.states = states
        for state in states:
            state["step"] = int(state["step"])

    def next_of_all(self) -> float | None:
        values = [state["step"] for state in self.states]
        low = min(values)
        return low + 1 if low == max(values) else None

    def next_of_each(self) -> list[float]:
        return [state["step"] + 1 for state in self.states]

    def count(self, found_inf: Tensor | None) -> None:
        """Counts one step, unless the gradients held an infinity: then it did not take place."""
        if found_inf is None or not found_inf.item():
            for state in self.states:
                state["step"] += 1
