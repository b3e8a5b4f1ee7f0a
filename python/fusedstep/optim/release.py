"""Gradient release: each parameter is updated in backward, and its gradient is freed at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from .. import check
from ..plan.watch import ParamLists
from .base import FusedOptimizer, Group, State


def enable_gradient_release(model: nn.Module, optimizer: torch.optim.Optimizer) -> GradientRelease:
    """Updates each parameter as soon as backward has its gradient, and frees the gradient.

    A model's gradients then never exist all at once: in bfloat16 this saves 2 bytes a parameter.
    The loop stays as it is. ``optimizer.step()`` finds no gradients to use; it still runs its hooks
    and closure, and says that one step ends and the next may begin. Results, states and checkpoints
    are those of an optimizer without release. FSDP2 (``fully_shard``) reduces a gradient before it
    is used here.

    What needs all gradients at once cannot be combined with it, and is refused: clipping by the
    norm of all gradients, a ``GradScaler``, several backward passes in one step, and
    ``DistributedDataParallel``, which reduces gradients later. Nobody can see a clipping of your
    own between backward and step: it finds no gradients, and changes nothing.

    Arguments:
        model: the module that has the optimizer's parameters.
        optimizer: one of fusedstep's. A parameter that is added to it later, or needs no gradient
            now, is updated by ``optimizer.step()``.

    Returns:
        A handle. Its ``remove()`` ends the release.

    Example:
        >>> from fusedstep.optim import AdamW
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = AdamW(model.parameters())
        >>> handle = enable_gradient_release(model, opt)
        >>> model(torch.ones(8)).sum().backward()  # updates both parameters
        >>> model.weight.grad is None
        True
        >>> opt.step()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model should be a torch.nn.Module but is: {type(model).__name__}. Pass the module "
            "that has the optimizer's parameters."
        )
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(
            "optimizer should be one of fusedstep.optim or fusedstep.hf, and not SparseAdam, but "
            f"is: {type(optimizer).__name__}. Other optimizers cannot step one parameter at a time."
        )
    if getattr(optimizer, "_release", None) is not None:
        raise RuntimeError(
            "optimizer: its gradients are released already. Call remove() on the handle first."
        )
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise RuntimeError(
            "model: DistributedDataParallel reduces gradients after they would have been released. "
            "Use FSDP2 (fully_shard), which reduces each before its release."
        )
    own = {id(param) for param in model.parameters()}
    for where, param in check.all_places(optimizer.param_groups):
        if id(param) not in own:
            raise ValueError(
                f"model: {where} of the optimizer is not one of its parameters. Pass the module "
                "that the optimizer was made for."
            )
        if "_fsdp_flattened" in param.__dict__:
            raise RuntimeError(
                f"model: {where} belongs to FSDP1, which reduces gradients after they would have "
                "been released. Use FSDP2 (fully_shard)."
            )
    return GradientRelease(optimizer)


class GradientRelease:
    """The hooks that step an optimizer's parameters in backward. ``enable_gradient_release`` makes
    it."""

    def __init__(self, optimizer: FusedOptimizer) -> None:
        self.optimizer = optimizer
        self._refuse_what_needs_all()
        optimizer._release = self
        self._stepped: set[int] = set()  # parameters that this step has updated
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(lambda *_: self._refuse_scaler()),
            optimizer.register_step_post_hook(lambda *_: self._stepped.clear()),
        ]
        for where, param in check.all_places(optimizer.param_groups):
            if param.requires_grad:
                step = functools.partial(self._step, _alone(optimizer, where, param))
                self._handles.append(param.register_post_accumulate_grad_hook(step))

    def remove(self) -> None:
        """Ends the release: gradients stay until ``optimizer.step()`` uses them."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.optimizer._release = None

    @torch.no_grad()
    def _step(self, alone: Any, param: Tensor) -> None:
        """The hook: updates one parameter, and frees its gradient."""
        if not alone.follows(self.optimizer):
            return  # the optimizer does not have it any more
        self._refuse_what_needs_all()
        if id(param) in self._stepped:
            raise RuntimeError(
                f"{type(self.optimizer).__name__}: {alone.where} has a second gradient in one "
                "step, after the first one was released. Call optimizer.step() after each "
                "backward pass. To add up gradients of several, call remove() on the handle of "
                "enable_gradient_release."
            )
        alone.step_alone()
        self.optimizer.state.update(alone.state)
        self._stepped.add(id(param))
        param.grad = None

    def _refuse_what_needs_all(self) -> None:
        limit = self.optimizer.max_grad_norm
        if limit is not None:
            raise RuntimeError(
                f"max_grad_norm={limit} needs the norm of all gradients, and "
                "enable_gradient_release frees each before the next one exists. Leave "
                "max_grad_norm None, or do without release."
            )
        for group in self.optimizer.param_groups:
            if group.get("global_clipnorm") is not None:
                raise RuntimeError(
                    "global_clipnorm needs the norm of all gradients, and enable_gradient_release "
                    "frees each before the next one exists. Use clipnorm, or do without release."
                )

    def _refuse_scaler(self) -> None:
        given = (getattr(self.optimizer, key, None) for key in ("grad_scale", "found_inf"))
        if any(value is not None for value in given):
            raise RuntimeError(
                f"{type(self.optimizer).__name__}: a GradScaler cannot be used with "
                "enable_gradient_release: in backward it does not yet know whether a gradient "
                "is finite. Train in bfloat16, which needs no scaler, or call remove() on the "
                "handle."
            )


class OneParameter:
    """Mixed into an optimizer's class: it steps one parameter of another optimizer, in the groups
    of that one, with a plan of its own."""

    where: check.Where
    state: dict[Tensor, State]  # of this parameter only: a step looks at all of it
    _lists_of_one: ParamLists

    def follows(self, optimizer: FusedOptimizer) -> bool:
        """Takes over what may have been replaced. False if the parameter is not there any more."""
        (param,), groups = self._lists_of_one[0], optimizer.param_groups
        if not _is_at(self.where, groups, param):
            places = (where for where, own in check.all_places(groups) if own is param)
            found = next(places, None)
            if found is None:
                return False
            self.where = found
        elif self.where.groups is not groups:  # a checkpoint was loaded
            self.where = check.Where(groups, self.where.group, self.where.index)
        state = optimizer.state.get(param)
        if self.state.get(param) is not state:
            self.state = {} if state is None else {param: state}
        self.__dict__.update(param_groups=groups, backend=optimizer.backend)
        return True

    def step_alone(self) -> None:
        self._step()  # type: ignore[attr-defined]

    def _parameters(self) -> Iterator[tuple[check.Where, Group, Tensor]]:
        where, (param,) = self.where, self._lists_of_one[0]
        yield where, where.groups[where.group], param

    def _lists(self) -> ParamLists:
        return self._lists_of_one


def _is_at(where: check.Where, groups: list[Group], param: Tensor) -> bool:
    if where.group >= len(groups) or where.index >= len(groups[where.group]["params"]):
        return False
    return groups[where.group]["params"][where.index] is param


_classes: dict[type, type[Any]] = {}


def _class_of_one(kind: type[FusedOptimizer]) -> type[Any]:
    """Errors name the optimizer, so the class keeps its name."""
    if kind not in _classes:
        _classes[kind] = type(kind.__name__, (OneParameter, kind), {})
    return _classes[kind]


def _alone(optimizer: FusedOptimizer, where: check.Where, param: Tensor) -> Any:
    """An optimizer like this one, without its plan, for one of its parameters."""
    kind = _class_of_one(type(optimizer))
    alone = object.__new__(kind)
    own: dict[str, Any] = {"state": {}, "_plan": None, "_made_for": None, "_layout": None}
    alone.__dict__.update(optimizer.__dict__, **own, where=where, _lists_of_one=[[param]])
    return alone
