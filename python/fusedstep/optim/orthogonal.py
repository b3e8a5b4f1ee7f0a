"""The two walks over memory of a step of Muon, and the products of matrices between them.

    first      m = average of g, u goes into the batch           one launch for all matrices
    products   each u becomes x, which is nearly orthogonal      a batch at a time, by torch
    second     p = p - size x                                    one launch for all matrices

The walks are plans of their own, made from the members of the optimizer's plan. A batch has all
matrices of one group, shape and device, and is a group of these plans: the size of a step depends
on the shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..plan import shards
from ..plan.bucket import Member
from ..plan.layouts import Layout, Layouts
from ..plan.plan import Owner, Plan
from ..plan.storage import COPY, REST
from ..plan.watch import ParamLists

State = dict[str, Any]

# Elements whose products are under way at once. More take memory and are no faster.
AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Batch:
    """Matrices of one group and shape: u, and later x, of shape (count, rows, cols)."""

    group: int
    matrices: Tensor


class Walks:
    """The two walks of an optimizer's plan. They last as long as it holds."""

    def __init__(
        self, plan: Plan, owner: Owner, lists: ParamLists, state: dict[Any, State]
    ) -> None:
        self.plan = plan
        keys = [_batch_of(member) for member in plan.members]
        places: dict[tuple[Any, ...], list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        self.batches: list[Batch] = []
        self.targets = [member.param for member in plan.members]  # u, and below x, of each member
        self._results = list(self.targets)
        for (group, shape, device, dtype), own in places.items():
            matrices = torch.empty((len(own), *shape), dtype=dtype, device=device)
            self.batches.append(Batch(group, matrices))
            for place, u, x in zip(own, matrices.unbind(), matrices.unbind(), strict=True):
                self.targets[place], self._results[place] = u, x
        self._states = {u: m.state for u, m in zip(self.targets, plan.members, strict=True)}
        self._show_results()
        batch_index = {key: k for k, key in enumerate(places)}
        layouts, first, second = Layouts(), [], []
        for member, u, key in zip(plan.members, self.targets, keys, strict=True):
            of_u = layouts.of(u), u.data_ptr()
            first.append(_before(member, batch_index[key], u, of_u))
            second.append(_after(member, batch_index[key], u, of_u))
        of_state = {id(member.state): member for member in plan.members}
        named = replace(owner, where=lambda member: owner.where(of_state[id(member.state)]))
        # In the order of the optimizer's plan, so that all three read the same counters.
        self.first = Plan(named, first, lists, state)
        self.second = Plan(named, second, [self.targets], self._states)

    def hold(self, plan: Plan, lists: ParamLists, state: dict[Any, State]) -> bool:
        """Whether they can be used for a step of `plan`. They follow gradients as it does."""
        self._show_results()
        return (
            self.plan is plan
            and self.first.holds(lists, state)
            and self.second.holds([self.targets], self._states)
        )

    def _show_results(self) -> None:
        """Makes x the gradient of u, for the members that have a gradient."""
        for member, u, x in zip(self.plan.members, self.targets, self._results, strict=True):
            u.grad = x if member.is_present else None


def _batch_of(member: Member) -> tuple[int, torch.Size, torch.device, torch.dtype]:
    """Group, shape, device and dtype of the batch that takes a member. torch rounds u to bfloat16
    for the products. Before that, float64 must not be computed in float32, nor u rounded by noise.
    """
    param = member.layouts[0]
    dtype = torch.float32 if member.noise is not None else torch.bfloat16
    if param.dtype == torch.float64:
        dtype = torch.float64
    return member.group, param.shape, param.device, dtype


def _before(member: Member, batch: int, u: Tensor, of_u: tuple[Layout, int]) -> Member:
    keys = [key for key in member.state_keys if key not in (REST, COPY)]
    layouts, addresses = _states(member, keys)
    grad = member.param.grad
    address = 0 if grad is None else shards.address_of(grad)
    return Member(
        u, member.state, batch, "muon_average", tuple(keys),
        (of_u[0], member.layouts[1], *layouts), (of_u[1], address, *addresses),
        source=member.param, noise=member.noise,
    )  # fmt: skip


def _after(member: Member, batch: int, u: Tensor, of_u: tuple[Layout, int]) -> Member:
    keys = [key for key in member.state_keys if key in (REST, COPY)]
    layouts, addresses = _states(member, keys)
    return Member(
        member.param, member.state, batch, "muon_descend", tuple(keys),
        (member.layouts[0], of_u[0], *layouts),
        (member.addresses[0], of_u[1] if member.is_present else 0, *addresses),
        source=u, noise=member.noise,
    )  # fmt: skip


def _states(member: Member, keys: list[str]) -> tuple[list[Layout], list[int]]:
    places = [2 + member.state_keys.index(key) for key in keys]
    return [member.layouts[k] for k in places], [member.addresses[k] for k in places]


def orthogonalize(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> None:
    """Makes each matrix of a batch nearly orthogonal, in place, as torch does one at a time:

    x = x / max(norm(x), eps)             then, `steps` times, of x with more columns than rows:
    A = x x^T
    x = a x + (b A + c A^2) x
    """
    count, rows, cols = matrices.shape
    for part in matrices.split(max(1, AT_ONCE // max(1, rows * cols))) if count else ():
        x = part.to(torch.bfloat16)
        x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_(min=eps)
        if rows > cols:
            x = x.mT
        a, b, c = coefficients
        for _ in range(steps):
            gram = torch.bmm(x, x.mT)
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, factor, x, beta=a)
        part.copy_(x.mT if rows > cols else x)
