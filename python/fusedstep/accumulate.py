"""Sums the gradients of micro-batches, in one fused pass over memory for each micro-batch."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import backends, check
from .plan import devices, shards
from .plan.bucket import Member
from .plan.launcher import Backend, BackendName
from .plan.layouts import Layout, Layouts
from .plan.plan import Owner, Plan
from .plan.rows import HostRows

NAME = "GradientAccumulator"


@dataclass(frozen=True)
class Place:
    """A parameter as an error names it: `parameter 3 ('fc.weight', shape ...)`."""

    index: int
    param: Tensor
    name: str | None

    def __str__(self) -> str:
        return f"parameter {self.index} ({check.described(self.param, self.name)})"


class GradientAccumulator:
    """Sums the gradients of micro-batches, as transformers' class of this name did for TensorFlow.

        a = a + scale g                  at each call, for every parameter that has a gradient g

    Sums of 16-bit gradients are float32; others have the gradient's dtype. After a call ``.grad``
    is None, so the next backward starts from nothing. A call does not wait for a device or
    communicate with other processes: of a DTensor each adds up its own part.

    Arguments:
        params: parameters, or (name, parameter) pairs. Errors use the names.
        scale: the weight of each micro-batch. Use 1 / (number of micro-batches) for a mean.
        backend: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"``, ``"reference"``; by default
            ``FUSEDSTEP_BACKEND`` or auto.

    Attributes:
        step: the number of calls since the last ``reset()``.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> accumulator = GradientAccumulator(model.parameters(), scale=1 / 2)
        >>> for batch in torch.ones(2, 4, 8):
        ...     model(batch).sum().backward()
        ...     accumulator()
        >>> accumulator.hand_over()
        >>> model.bias.grad
        tensor([4., 4., 4., 4., 4., 4., 4., 4.])
        >>> opt.step()
        >>> accumulator.reset()
    """

    def __init__(
        self,
        params: Iterable[Tensor | tuple[str, Tensor]],
        scale: float = 1.0,
        *,
        backend: BackendName | None = None,
    ) -> None:
        self.scale = _weight(scale)
        self.step = 0
        self._backend = backends.check_name(backend)
        self._places = _places(params)
        self._params = [place.param for place in self._places]
        self._sums: list[Tensor | None] = [None] * len(self._params)
        self._handed = list(self._sums)  # .grad after hand_over(): the sums, or rounded copies
        self._called = False
        self._state: dict[Tensor, dict[str, Any]] = {}  # the watch takes it for optimizer states
        self._plan: Plan | None = None

    @torch.no_grad()
    def __call__(self, scale: float | None = None) -> None:
        """Adds the gradients to the sums, and sets ``.grad`` to None.

        Arguments:
            scale: replaces the accumulator's scale in this call, as for a batch of another size.
        """
        weight = self.scale if scale is None else _weight(scale)
        self._refuse_what_was_handed_over()
        plan = self._plan
        if plan is None or not plan.holds([self._params], self._state):
            plan = self._plan = self._make_plan(plan)
        for bucket in plan.buckets:
            _refuse_capture(bucket.device)
        rows = HostRows([[1.0, weight, 0.0]])
        plan.run([rows] * len(plan.buckets))
        for param in self._params:
            param.grad = None
        self._called = True
        self.step += 1

    @property
    def gradients(self) -> list[Tensor | None]:
        """The sums, in the order of the parameters. None for a parameter that never had a
        gradient."""
        self._refuse_before_the_first_call()
        return list(self._sums)

    @torch.no_grad()
    def hand_over(self) -> None:
        """Sets the parameters' gradients to the sums: ``.grad = a``.

        ``.grad`` is the sum itself if its dtype fits the parameter, else a copy rounded to the
        parameter's dtype. A gradient that was not added is lost.
        """
        self._refuse_before_the_first_call()
        sums: list[Tensor] = []
        copies: list[Tensor] = []
        handed = list(self._sums)
        for index, (param, own) in enumerate(zip(self._params, self._sums, strict=True)):
            if own is None:
                continue
            self._check_sum(index, own.dtype)
            dtype = getattr(param, "grad_dtype", param.dtype)  # None: any; torch 2.10 and newer
            if dtype not in (None, own.dtype):
                handed[index] = copy = torch.empty_like(own, dtype=dtype)
                sums.append(shards.local(own))
                copies.append(shards.local(copy))
        if copies:
            torch._foreach_copy_(copies, sums)
        for param, gradient in zip(self._params, handed, strict=True):
            param.grad = gradient
        self._handed = handed

    @torch.no_grad()
    def reset(self) -> None:
        """Starts again: ``a = 0``, ``step = 0``, and removes each ``.grad`` that was handed
        over."""
        sums = [shards.local(own) for own in self._sums if own is not None]
        if sums:
            torch._foreach_zero_(sums)
        for param, own in zip(self._params, self._handed, strict=True):
            if own is not None and param.grad is own:
                param.grad = None
        self._handed = list(self._sums)
        self.step = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}  # its addresses mean nothing in another process

    def _refuse_before_the_first_call(self) -> None:
        if not self._called:
            raise ValueError(
                f"{NAME} has no gradients yet: call it after backward(), once for each micro-batch."
            )

    def _refuse_what_was_handed_over(self) -> None:
        """Refuses a call after hand_over() without reset(): a sum that is a gradient would be added
        to itself, and so would a copy that a backward added to."""
        for index, (param, own) in enumerate(zip(self._params, self._handed, strict=True)):
            if own is not None and param.grad is own:
                raise RuntimeError(
                    f"{NAME}: {self._places[index]}: its gradient is the sum that was handed over. "
                    "Call reset() after the optimizer's step, before the next backward()."
                )

    def _check_sum(self, index: int, dtype: torch.dtype) -> None:
        """Refuses a parameter that does not fit its sum any more, or a gradient `dtype` that the
        sum would round."""
        total = self._sums[index]
        if total is not None and not self._belongs(index, total, dtype):
            raise RuntimeError(
                f"{NAME}: {self._places[index]}: its sum is of {tuple(total.shape)}, {total.dtype},"
                f" on {total.device}: parameter or gradient changed since it was made. Make a new "
                f"{NAME}."
            )

    def _belongs(self, index: int, own: Tensor, dtype: torch.dtype) -> bool:
        param = self._params[index]
        return (
            shards.is_spread_as(own, param)
            and own.device == param.device
            and own.is_complex() == param.is_complex()
            and torch.promote_types(own.dtype, dtype) == own.dtype
        )

    def _make_plan(self, old: Plan | None) -> Plan:
        """Checks everything first; then makes the missing sums. A member of the `old` plan whose
        gradient is only absent for now stays a member."""
        layouts = Layouts()
        # Position of a gradient -> its layout and address.
        found: dict[int, tuple[Layout, int]] = {}
        chosen: set[torch.device] = set()
        for index, param in enumerate(self._params):
            grad = param.grad
            if grad is None:
                continue
            where = self._places[index]
            (_, layout), (_, address) = check.look_at(where, param, grad, layouts, NAME)
            self._check_sum(index, grad.dtype)
            if param.device not in chosen:
                _refuse_capture(param.device)
                backends.choose(self._backend, param.device, where)
                chosen.add(param.device)
            found[index] = layout, address
        members, position = [], {}
        for index, (layout, address) in found.items():
            param, own = self._params[index], self._sums[index]
            if own is None:
                dtype = torch.promote_types(layout.dtype, torch.float32)
                own = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
                self._sums[index] = self._handed[index] = own
                self._state[param] = {"sum": own}
            local = shards.local(own)
            both, addresses = (layouts.of(local), layout), (local.data_ptr(), address)
            members.append(Member(own, {}, 0, "accumulate", (), both, addresses, source=param))
            position[id(param)] = index
        members += self._absent(old, position)

        def place(member: Member) -> Place:
            return self._places[position[id(member.owner)]]

        plan = Plan(Owner(NAME, self._choose, place), members, [self._params], self._state)
        for bucket in plan.buckets:
            bucket.rows.by_group(0.0)
        return plan

    def _absent(self, old: Plan | None, position: dict[int, int]) -> list[Member]:
        """Members of the old plan without a gradient, if their sums still fit. Adds their places
        among the parameters to `position`."""
        absent = {} if old is None else {id(m.owner): m for m in old.members if not m.is_present}
        kept = []
        for index, param in enumerate(self._params):
            member, own = absent.get(id(param)), self._sums[index]
            if member is None or own is not member.param:
                continue
            if self._belongs(index, own, member.layouts[1].dtype):
                position[id(param)] = index
                kept.append(replace(member, addresses=(shards.local(own).data_ptr(), 0)))
        return kept

    def _choose(self, device: torch.device, where: object) -> Backend:
        backend = backends.choose(self._backend, device, where)
        backends.warn_if_slow(backend, device)
        return backend


def _weight(scale: Any) -> float:
    scale = check.number(scale, "scale")
    if not isinstance(scale, numbers.Real):
        raise TypeError(f"scale should be a number but is: {scale!r}. For a tensor, give .item().")
    return float(scale)


def _refuse_capture(device: torch.device) -> None:
    if devices.is_capturing(device):
        raise RuntimeError(
            f"{NAME}: a stream of {device} is captured in a graph, which would not see a new scale "
            "or new gradient addresses: those are on the host. Call it outside the capture."
        )


def _places(params: Any) -> list[Place]:
    """The parameters, with their names if given. Refuses what cannot have a gradient."""
    expected = "expected parameters, or (name, parameter) pairs such as model.named_parameters()"
    if isinstance(params, (Tensor, torch.nn.Module)) or not isinstance(params, Iterable):
        raise TypeError(f"{NAME}: params is a {type(params).__name__}, {expected}.")
    places = []
    first: dict[int, Place] = {}
    for index, entry in enumerate(params):
        name, param = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, entry)
        if not isinstance(param, Tensor):
            kind = type(param).__name__
            raise TypeError(f"{NAME}: entry {index} of params is a {kind}, {expected}.")
        place = Place(index, param, name)
        if not param.is_leaf:
            raise ValueError(f"{NAME}: {place} is computed from others: only leaves have a .grad.")
        if first.setdefault(id(param), place) is not place:
            raise ValueError(f"{NAME}: {place} is {first[id(param)]} once more. Give it once.")
        places.append(place)
    if not places:
        raise ValueError(f"{NAME} got an empty parameter list: {expected}.")
    return places
