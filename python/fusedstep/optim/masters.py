"""Master weights: notices parameters that were changed from outside, gives masters out, and takes
them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..plan import shards
from ..plan.bucket import Member
from ..plan.storage import COPY, REST
from ..stored_numbers import join, split

State = dict[str, Any]


class MasterWeights:
    """Remembers the versions of parameters after a step. A rest belongs to the parameter that was
    written with it: if something else writes the parameter, the rest is dropped."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._versions: dict[int, int] = {}  # by the identity of a parameter

    def forget(self) -> None:
        """Takes the parameters as they will be at the next step: a checkpoint was loaded."""
        self._versions.clear()

    def remember(self, members: Iterable[Member]) -> None:
        """Notes the parameters as they are after a step."""
        self._versions.update({id(m.param): _version(m.param) for m in members})

    def notice_changes(
        self, members: Iterable[Member], where: Callable[[Member], object], capturing: bool
    ) -> None:
        """Drops the rest of each parameter that something else wrote after the last step."""
        seen = self._versions
        for member in members:
            version = _version(member.param)
            if seen.get(id(member.param), version) == version or not has_master(member.state):
                continue
            if capturing:
                raise RuntimeError(
                    f"{self._name}: {where(member)} was changed since the step before the capture, "
                    "so that its master weight does not belong to it. Run one warm-up step more."
                )
            warnings.warn(
                f"{self._name}: {where(member)} was changed from outside since the last step. Its "
                "master weight starts again from the changed parameter, without a rest. To change "
                "master weights, use load_master_state_dict.",
                stacklevel=2,
            )
            start_again(member.param, member.state)


def has_master(state: Mapping[str, Any]) -> bool:
    """Whether a parameter has a master weight."""
    return REST in state or COPY in state


def start_again(param: Tensor, state: State) -> None:
    """Makes the parameter its own master weight."""
    if REST in state:
        shards.local(state[REST]).zero_()
    else:
        shards.local(state[COPY]).copy_(shards.local(param.detach()))


def master_of(param: Tensor, state: State) -> Tensor:
    """A parameter's master weight, in float32: a copy. Without one it is the parameter itself, in
    float32 if it has 16 bits."""
    own = shards.local(param.detach())
    if REST in state:
        numbers = join(own, shards.local(state[REST]))
    elif COPY in state:
        numbers = shards.local(state[COPY]).clone()
    else:
        wide = torch.float32 if own.dtype in (torch.bfloat16, torch.float16) else own.dtype
        numbers = own.to(wide, copy=True)
    return shards.spread_like(param, numbers, param.shape) if shards.is_dtensor(param) else numbers


def set_master(param: Tensor, state: State, master: Tensor) -> None:
    """Writes a master weight, and the parameter that belongs to it."""
    own, numbers = shards.local(param.detach()), shards.local(master).to(torch.float32)
    if REST in state:
        rest = shards.local(state[REST])
        for tensor, part in zip((own, rest), split(numbers, rest.dtype), strict=True):
            tensor.copy_(part)
    else:
        own.copy_(numbers)
        if COPY in state:
            shards.local(state[COPY]).copy_(numbers)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters by all their names, as `model.state_dict()` has them."""
    return model.named_parameters(remove_duplicate=False)


def like_parameter(name: str, param: Any, master: Any) -> Tensor:
    """A given master weight, checked, and spread as its parameter is."""
    if not isinstance(master, Tensor) or not master.is_floating_point():
        said = f"a {type(master).__name__}" if not isinstance(master, Tensor) else master.dtype
        raise TypeError(f"the master weight of '{name}' should be a float tensor but is: {said}")
    if master.shape != param.shape:
        raise ValueError(
            f"the master weight of '{name}' has shape {tuple(master.shape)}, and the parameter has "
            f"{tuple(param.shape)}"
        )
    if not shards.is_dtensor(param):
        return master.detach().to(param.device)
    mesh, placements = param.device_mesh, param.placements
    if shards.is_dtensor(master):
        return master.detach().redistribute(mesh, placements)  # type: ignore[attr-defined]
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(master.detach().to(shards.local(param).device), mesh, placements)


def _version(param: Tensor) -> int:
    own = shards.local(param)
    return -1 if own.is_inference() else own._version
