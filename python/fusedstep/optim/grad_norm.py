"""The norm of all gradients, and the factor that clips them inside the step.

    norm = sqrt(sum of g^2) / grad_scale             factor = min(1, max_grad_norm / (norm + 1e-6))

The factor is multiplied into the inverse gradient scale, which every kernel takes. So clipping
costs one more read of the gradients, and nothing writes them.

Adafactor needs this read too. It divides g^2 by row moments that have the clipped g^2 in them, and
sums the quotients: that sum is no function of a few sums that are known before the factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan import devices, flat, shards
from ..plan.launcher import Launcher
from ..plan.plan import Plan
from ..plan.shards import Processes

Holders = tuple[Processes, ...]  # whose parts of a gradient are added up; empty if all is here


def checked_limit(value: Any, name: str) -> float | None:
    """`max_grad_norm` as a float, or None."""
    given = check.number(value, "max_grad_norm")
    if given is None:
        return None
    is_number = isinstance(given, Real) and not isinstance(given, bool)
    if is_number and float(given) > 0.0:
        return float(given)
    more = " Give its .item()." if isinstance(given, Tensor) else ""
    raise (ValueError if is_number else TypeError)(
        f"{name}: max_grad_norm should be a number above 0, or None for no clipping, but is: "
        f"{value!r}.{more}"
    )


class SharedSums:
    """Sums of squares of gradients, one for each set of processes that hold parts of them. All
    processes have the same sets, with gradients or without, so that all send the same messages."""

    def __init__(self, params: Iterable[Tensor], may_share: bool) -> None:
        home: torch.device | None = None  # where all sums meet: a GPU if there is one
        self.place_of: dict[int, int] = {}  # of a parameter's sum
        self._places: dict[Holders, int] = {}
        for param in params:
            own = shards.local(param)
            if home is None or (home.type == "cpu" and own.device.type != "cpu"):
                home = own.device
            holders = _holders_of(param) if may_share else ()
            self.place_of[id(param)] = self._places.setdefault(holders, len(self._places))
        self.home = home or torch.device("cpu")
        self.dtype = devices.widest_float(self.home)
        every = {processes for holders in self._places for processes in holders}
        self._processes = sorted(every, key=lambda processes: processes.order)

    def zeros(self) -> list[Tensor]:
        return [torch.zeros((), dtype=self.dtype, device=self.home) for _ in self._places]

    def add_up(self, sums: list[Tensor]) -> None:
        """Adds up what the processes give, in place. What is split twice is added up over one group
        of processes, then over another."""
        for processes in self._processes:
            places = [k for holders, k in self._places.items() if processes in holders]
            device = processes.device_for(self.home)
            message = torch.stack([sums[k] for k in places]).to(device)
            processes.add_up(message)()
            for k, total in zip(places, message.unbind(), strict=True):
                sums[k] = devices.to_device(total, self.home)


def _holders_of(param: Tensor) -> Holders:
    piece = flat.piece_of(param)
    if piece is not None:
        return (piece.processes,)
    shard = shards.shard_of(param, False)
    return () if shard is None else tuple(split.processes for split in shard.splits)


def why_no_norm(param: Tensor) -> str:
    """Why the norm of a flat shard's gradient is not known; empty if it is."""
    if "_fsdp_flattened" in param.__dict__ and flat.is_lost(param):
        return (
            "is a flat shard of FSDP1, and its processes are not known. Give FSDP1 "
            "use_orig_params=True, or call its clip_grad_norm_ instead of max_grad_norm"
        )
    piece = flat.piece_of(param)
    return f"is a flat shard: {piece.problem}" if piece is not None and piece.problem else ""


class GradientNorm:
    """The norm of the gradients of a plan."""

    def __init__(self, plan: Plan, shared: SharedSums) -> None:
        self.plan = plan
        self.shared = shared
        self._parts = [_Parts(own, shared.place_of) for own in plan.launchers]

    def __call__(self, inv_grad_scale: Tensor | None, capturing: bool) -> Tensor:
        """A tensor of no dimensions, on the device of the gradients. The host waits for no device,
        unless there are several."""
        self.plan.copy_gradients_in()
        sums = self.shared.zeros()
        for own in self._parts:
            for place, part in own.sums(capturing):
                sums[place] = sums[place] + devices.to_device(
                    part, self.shared.home, self.shared.dtype
                )
        self.shared.add_up(sums)
        total = sums[0] if len(sums) == 1 else torch.stack(sums).sum()
        norm = total.sqrt()
        if inv_grad_scale is not None:
            norm = norm * devices.to_device(inv_grad_scale, norm.device)
        return norm


class _Parts:
    """The sums of one launcher, by the places that they belong to."""

    def __init__(self, launcher: Launcher, place_of: dict[int, int]) -> None:
        self.launcher = launcher
        members = launcher.bucket.members
        places = [place_of[id(member.param)] for member in members]
        self.places = sorted(set(places))
        self.indices: dict[int, Tensor] = {}
        if len(self.places) > 1:  # known when the plan is made, so that no step uploads it
            of_parts = torch.tensor(places, device="cpu").repeat_interleave(
                torch.tensor(launcher.square_counts(), device="cpu")
            )
            for place in self.places:
                index = (of_parts == place).nonzero()[:, 0]
                self.indices[place] = index.to(launcher.bucket.device)

    def sums(self, capturing: bool) -> Sequence[tuple[int, Tensor]]:
        squares = self.launcher.square_sums(capturing)
        if not self.indices:
            return [(self.places[0], _total(squares))]
        return [(place, _total(squares[self.indices[place]])) for place in self.places]


def _total(numbers: Tensor) -> Tensor:
    """The sum. On the host it is added up in order: there torch's own order would depend on the
    number of threads."""
    if devices.on_host(numbers) and len(numbers):
        return numbers.cumsum(0)[-1]
    return numbers.sum()


def clip_factor(norm: Tensor, limit: float) -> Tensor:
    """torch.nn.utils.clip_grad_norm_'s. It is nan if the norm is, and 0 if that is infinite."""
    return (limit / (norm + 1e-6)).clamp(max=1.0)
