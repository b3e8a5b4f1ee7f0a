"""The step counters of a plan's parameters: tensors or ints, as the peer keeps them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from itertools import compress
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from . import devices

State = dict[str, Any]
COUNTS = (torch.float32, torch.float64)  # the dtypes of torch's counters
STEP = itemgetter("step")


class TensorCounters:
    """torch's counters: a 0-d tensor for each parameter. A plan makes them views of one tensor, so
    that one addition counts them all. They can be saved, loaded and copied like other tensors.

    Counters on a device stay there. The host reads those that it holds. It also waits for those at
    the positions in `waited_for`, whose scalars can only be computed on the host.
    """

    def __init__(self, states: list[State], waited_for: Iterable[int] = ()) -> None:
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, state in enumerate(states):
            step = state["step"]
            if not isinstance(step, Tensor) or step.dtype not in COUNTS:
                step = state["step"] = _counting(step)
            kinds.setdefault((step.dtype, step.device), []).append(index)
        self._present: bytes | None = None
        self.flats: list[Tensor] = []
        self.positions = list(kinds.values())  # of the counters in each flat tensor
        self.home = [(0, 0)] * len(states)  # for each counter: which flat tensor, its place in it
        for which, indices in enumerate(self.positions):
            counters = [states[i]["step"] for i in indices]
            flat = _common_tensor(counters)
            if flat is None:
                flat = torch.stack([step.reshape(()) if step.dim() else step for step in counters])
                for view, i in zip(flat.unbind(), indices, strict=True):
                    states[i]["step"] = view
            self.flats.append(flat)
            for place, i in enumerate(indices):
                self.home[i] = which, place
        self._took_part = self._ones(None)
        needed = {self.home[i][0] for i in waited_for}
        self.read = [k for k, flat in enumerate(self.flats) if devices.on_host(flat) or k in needed]
        self._memory = None
        if len(self.read) == 1 and devices.on_host(self.flats[self.read[0]]):
            self._memory = _memory_of(self.flats[self.read[0]])

    def hold(self) -> bool:
        """Whether they are still those that the plan was made with. The watch checks tensors."""
        return True

    def is_on_device(self, position: int) -> bool:
        """Whether the host would have to wait for this counter."""
        return not devices.on_host(self.flats[self.home[position][0]])

    def next_of_all(self) -> float | None:
        """The number of the coming step, or None if the counters that are read differ."""
        if len(self.read) != 1:
            return None
        if self._memory is not None:
            raw = bytes(self._memory)
            is_equal = raw == raw[: len(raw) // len(self._memory)] * len(self._memory)
            return float(self._memory[0]) + 1.0 if is_equal else None
        low, high = [end.item() for end in torch.aminmax(self.flats[self.read[0]])]
        return low + 1.0 if low == high else None

    def next_of_each(self) -> list[float]:
        """The number of the coming step of each parameter; 0 if its counter is not read."""
        result = [0.0] * len(self.home)
        for which in self.read:
            values = (self.flats[which].cpu().double() + 1.0).tolist()  # MPS has no float64
            if len(values) == len(result):
                return values  # in the members' order
            for index, value in zip(self.positions[which], values, strict=True):
                result[index] = value
        return result

    def vector(self, positions: list[int], device: torch.device) -> Callable[[], Tensor]:
        """A function that returns a tensor on `device`: the number of the coming step of each
        parameter in `positions`. It never waits."""
        which = sorted({self.home[i][0] for i in positions})
        start, starts = 0, {}
        for k in which:
            starts[k] = start
            start += len(self.flats[k])
        places = [starts[k] + place for k, place in map(self.home.__getitem__, positions)]
        first, dtype = places[0], devices.widest_float(device)
        consecutive = places == list(range(first, first + len(places)))
        index = None if consecutive else torch.tensor(places, device=device)

        def next_steps() -> Tensor:
            parts = [devices.to_device(self.flats[k], device, dtype) for k in which]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            if index is None:
                return joined[first : first + len(places)] + 1.0
            return joined.index_select(0, index) + 1.0

        return next_steps

    def count(self, found_inf: Tensor | None, present: bytes | None = None) -> None:
        """Counts one step, unless the gradients held an infinity: then there was no step.

        Arguments:
            present: which parameters took part, by position; None if all did.
        """
        if present is not self._present:  # a graph cannot replay this copy; a warm-up makes it
            self._present, self._took_part = present, self._ones(present)
        for flat, took_part in zip(self.flats, self._took_part, strict=True):
            if found_inf is not None:
                found_none = devices.to_device(found_inf == 0, flat.device, flat.dtype)
                took_part = found_none * took_part
            flat.add_(took_part)

    def _ones(self, present: bytes | None) -> list[float | Tensor]:
        """What a step adds to each flat tensor: 1 where a parameter took part."""
        if present is None:
            # On a host, torch takes 2 us to make a tensor of a number.
            return [
                torch.ones((), dtype=flat.dtype, device="cpu") if devices.on_host(flat) else 1.0
                for flat in self.flats
            ]
        ones = torch.frombuffer(bytearray(present), dtype=torch.uint8)
        added: list[float | Tensor] = []
        for flat, positions in zip(self.flats, self.positions, strict=True):
            own = ones if len(positions) == len(ones) else ones[positions]
            added.append(devices.to_device(own.to(flat.dtype), flat.device))
        return added


def _common_tensor(counters: list[Tensor]) -> Tensor | None:
    """The tensor that these counters are views of, in this order, or None. New counters are made as
    such views, and so are those of an earlier plan. A captured graph may count in that tensor, so
    later plans must use it too."""
    first, last = counters[0], counters[-1]
    start, size = first.data_ptr(), first.element_size()
    places = range(start, start + size * len(counters), size)
    if list(map(Tensor.data_ptr, counters)) != list(places) or any(map(Tensor.dim, counters)):
        return None
    if first.untyped_storage()._cdata != last.untyped_storage()._cdata:
        return None
    return first.as_strided((len(counters),), (1,))


def _memory_of(flat: Tensor) -> Any:
    """The numbers of a flat tensor of the host, without torch, which takes 3 us for the least and
    the largest one. The plan does not outlive a change of their address: the watch sees it."""
    kind = ctypes.c_float if flat.dtype == torch.float32 else ctypes.c_double
    return (kind * len(flat)).from_address(flat.data_ptr())


def _counting(step: float | Tensor) -> Tensor:
    """A counter as torch makes it, from a number or from a tensor that cannot count: in bfloat16
    256 + 1 is 256, and a float cannot be added to an integer tensor in place."""
    wide = torch.get_default_dtype() == torch.float64
    dtype = torch.float64 if wide else torch.float32
    if isinstance(step, Tensor):
        return step.detach().to(dtype)
    return torch.tensor(float(step), dtype=dtype, device="cpu")


class IntCounters:
    """transformers' counters: a Python int for each parameter. A step reads each of them once."""

    def __init__(self, states: list[State], waited_for: Iterable[int] = ()) -> None:
        self.states = states
        self._now: list[int] = []  # the counters, from `hold` to `count`
        for state in states:
            state["step"] = int(state["step"])

    def hold(self) -> bool:
        """Whether all are still ints: a script may have put tensors or floats in their place."""
        self._now = [*map(STEP, self.states)]
        return {*map(type, self._now)} <= {int}

    def _read(self) -> list[int]:
        return self._now or [*map(STEP, self.states)]  # no `hold` comes before a plan's first step

    def is_on_device(self, position: int) -> bool:
        """Whether the host would have to wait for this counter."""
        return False

    def next_of_all(self) -> float | None:
        values = self._read()
        first = values[0]
        return first + 1 if values.count(first) == len(values) else None

    def next_of_each(self) -> list[float]:
        return [value + 1 for value in self._read()]

    def vector(self, positions: list[int], device: torch.device) -> Callable[[], Tensor]:
        """A function that returns a tensor on `device`: the number of the coming step of each
        parameter in `positions`. It never waits."""

        def next_steps() -> Tensor:
            values = [self.states[i]["step"] + 1 for i in positions]
            return devices.to_device(
                torch.tensor(values, dtype=devices.widest_float(device), device="cpu"), device
            )

        return next_steps

    def count(self, found_inf: Tensor | None, present: bytes | None = None) -> None:
        """The same as in TensorCounters, except that the host reads `found_inf`."""
        coming = self.next_of_all()
        self._now = []
        if found_inf is not None and found_inf.item():
            return
        states = self.states if present is None else compress(self.states, present)
        if coming is None:
            for state in states:
                state["step"] += 1
        else:
            for state in states:
                state["step"] = coming
