"""The step counters of a plan's parameters: tensors or ints, as the peer keeps them, or none."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from itertools import compress
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import devices

if TYPE_CHECKING:
    from .bucket import Member

State = dict[str, Any]
# The number of a step. With a history (`plan/history.py`): that number, then what the states hold.
Step = Any
COUNTS = (torch.float32, torch.float64)  # the dtypes of torch's counters
STEP = itemgetter("step")


class TensorCounters:
    """torch's counters: a 0-d tensor for each parameter. A plan makes them views of one tensor, so
    that one addition counts them all. They can be saved, loaded and copied like other tensors.

    Counters on a device stay there. The host reads those that it holds. It also waits for those at
    the positions in `waited_for`, whose scalars can only be computed on the host.
    """

    keys: tuple[str, ...] = ("step",)  # of the states' tensors that are its own

    def __init__(self, members: list[Member], waited_for: Iterable[int] = ()) -> None:
        self._take([member.state for member in members], waited_for)

    def _take(self, states: list[State], waited_for: Iterable[int]) -> None:
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, state in enumerate(states):
            step = state["step"]
            if not isinstance(step, Tensor) or step.dtype not in COUNTS:
                step = state["step"] = counting(step)
            kinds.setdefault((step.dtype, step.device), []).append(index)
        self._present: bytes | None = None
        self.positions = list(kinds.values())  # of the counters in each flat tensor
        self.home = [(0, 0)] * len(states)  # for each counter: which flat tensor, its place in it
        for which, indices in enumerate(self.positions):
            for place, i in enumerate(indices):
                self.home[i] = which, place
        self.flats = [flat_tensor(states, "step", indices) for indices in self.positions]
        self._took_part = self._ones(None)
        needed = {self.home[i][0] for i in waited_for}
        self.read = [k for k, flat in enumerate(self.flats) if devices.on_host(flat) or k in needed]
        self._memory = None
        if len(self.read) == 1 and devices.on_host(self.flats[self.read[0]]):
            self._memory = memory_of(self.flats[self.read[0]])

    def hold(self) -> bool:
        """Whether they are still those that the plan was made with. The watch checks tensors."""
        return True

    def is_on_device(self, position: int) -> bool:
        """Whether the host would have to wait for this counter."""
        return not devices.on_host(self.flats[self.home[position][0]])

    def next_of_all(self) -> Step | None:
        """The number of the coming step, or None if the counters that are read differ."""
        if len(self.read) != 1:
            return None
        if self._memory is not None:
            number = only_number(self._memory)
            return None if number is None else number + 1.0
        low, high = [end.item() for end in torch.aminmax(self.flats[self.read[0]])]
        return low + 1.0 if low == high else None

    def next_of_each(self) -> list[Step]:
        """The number of the coming step of each parameter; 0 if its counter is not read."""
        return self._read_each(self.flats, 1.0)

    def _read_each(self, flats: list[Tensor], more: float = 0.0) -> list[float]:
        """The numbers of these flat tensors, for each parameter, and `more` added to each."""
        result = [0.0] * len(self.home)
        for which in self.read:
            values = (flats[which].cpu().double() + more).tolist()  # MPS has no float64
            if len(values) == len(result):
                return values  # in the members' order
            for index, value in zip(self.positions[which], values, strict=True):
                result[index] = value
        return result

    def vector(self, positions: list[int], device: torch.device) -> Callable[[], Step]:
        """A function that returns a tensor on `device`: the number of the coming step of each
        parameter in `positions`. It never waits."""
        counted = self._reader(self.flats, positions, device)
        return lambda: counted() + 1.0

    def _reader(
        self, flats: list[Tensor], positions: list[int], device: torch.device
    ) -> Callable[[], Tensor]:
        """A function that returns the numbers of these flat tensors at `positions`, on `device`."""
        which = sorted({self.home[i][0] for i in positions})
        start, starts = 0, {}
        for k in which:
            starts[k] = start
            start += len(flats[k])
        places = [starts[k] + place for k, place in map(self.home.__getitem__, positions)]
        first, dtype = places[0], devices.widest_float(device)
        consecutive = places == list(range(first, first + len(places)))
        index = None if consecutive else torch.tensor(places, device=device)

        def read() -> Tensor:
            parts = [devices.to_device(flats[k], device, dtype) for k in which]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            if index is None:
                return joined[first : first + len(places)]
            return joined.index_select(0, index)

        return read

    def count(self, found_inf: Tensor | None, present: bytes | None = None) -> None:
        """Counts one step, unless the gradients held an infinity: then there was no step.

        Arguments:
            present: which parameters took part, by position; None if all did.
        """
        for flat, took_part in zip(self.flats, self._taking_part(found_inf, present), strict=True):
            flat.add_(took_part)

    def _taking_part(self, found_inf: Tensor | None, present: bytes | None) -> list[float | Tensor]:
        """For each flat tensor: 1 where a parameter takes part in the step, else 0."""
        if present is not self._present:  # a graph cannot replay this copy; a warm-up makes it
            self._present, self._took_part = present, self._ones(present)
        if found_inf is None:
            return self._took_part
        found_none = found_inf == 0
        return [
            devices.to_device(found_none, flat.device, flat.dtype) * took_part
            for flat, took_part in zip(self.flats, self._took_part, strict=True)
        ]

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


def flat_tensor(states: list[State], key: str, indices: list[int]) -> Tensor:
    """One tensor that holds this number of all these states. They become views of it."""
    numbers = [states[i][key] for i in indices]
    flat = _common_tensor(numbers)
    if flat is None:
        flat = torch.stack([number.reshape(()) if number.dim() else number for number in numbers])
        for view, i in zip(flat.unbind(), indices, strict=True):
            states[i][key] = view
    return flat


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


def memory_of(flat: Tensor) -> Any:
    """The numbers of a flat tensor of the host, without torch, which takes 3 us for the least and
    the largest one. The plan does not outlive a change of their address: the watch sees it."""
    kind = ctypes.c_float if flat.dtype == torch.float32 else ctypes.c_double
    return (kind * len(flat)).from_address(flat.data_ptr())


def only_number(memory: Any) -> float | None:
    """The number that all of these are, or None."""
    raw = bytes(memory)
    return float(memory[0]) if raw == raw[: len(raw) // len(memory)] * len(memory) else None


def counting(step: float | Tensor) -> Tensor:
    """A counter as torch makes it, from a number or from a tensor that cannot count: in bfloat16
    256 + 1 is 256, and a float cannot be added to an integer tensor in place."""
    wide = torch.get_default_dtype() == torch.float64
    dtype = torch.float64 if wide else torch.float32
    if isinstance(step, Tensor):
        return step.detach().to(dtype)
    return torch.tensor(float(step), dtype=dtype, device="cpu")


class IntCounters:
    """transformers' counters: a Python int for each parameter. A step reads each of them once."""

    keys = ()  # `hold` looks at them

    def __init__(self, members: list[Member], waited_for: Iterable[int] = ()) -> None:
        self.states = [member.state for member in members]
        self._now: list[int] = []  # the counters, from `hold` to `count`
        for state in self.states:
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


class FirstSteps(TensorCounters):
    """For states without a counter, as those of torch's SGD: the number of a step is 1 if it is a
    parameter's first one, and else 2. They are on the parameters' devices."""

    keys = ()

    def __init__(self, members: list[Member], waited_for: Iterable[int] = ()) -> None:
        kinds: dict[torch.device, list[float]] = {}
        for member in members:
            taken = 0.0 if member.is_new else 1.0
            kinds.setdefault(member.layouts[0].device, []).append(taken)
        made = {
            device: iter(torch.tensor(taken, device=device, dtype=torch.float32).unbind())
            for device, taken in kinds.items()
        }
        hidden = [{"step": next(made[member.layouts[0].device])} for member in members]
        self._take(hidden, waited_for)

    def count(self, found_inf: Tensor | None, present: bytes | None = None) -> None:
        super().count(found_inf, present)
        for flat in self.flats:
            flat.clamp_(max=1.0)
