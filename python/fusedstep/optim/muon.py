"""torch.optim.Muon: one launch before the products of matrices, products in batches, one after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan import flat, shards
from ..plan.launcher import BackendName
from ..plan.plan import Plan
from ..plan.rows import HostRows
from ..rules import muon
from . import precision
from .base import FusedOptimizer, Group, State
from .hyperparams import for_steps, start_counters
from .limits import NOT_NEGATIVE, Limits
from .orthogonal import Walks, orthogonalize
from .scalar_rows import rows_of
from .shared_arguments import with_shared_arguments

ADJUSTMENTS = (None, "original", "match_rms_adamw", "spectral_unclamped")


def check_adjustment(name: object) -> None:
    """Refuses an unknown one: in the constructor, as torch does, and in a group at any time."""
    if name not in ADJUSTMENTS:
        raise ValueError(f"Adjust learning rate function {name} is not supported")


@with_shared_arguments
class Muon(FusedOptimizer):
    """Muon: same arguments, states and errors as ``torch.optim.Muon``, for matrices only.

        m = momentum m + (1 - momentum) g
        u = momentum m + (1 - momentum) g                  (without nesterov: u = m)
        x = u made nearly orthogonal by ns_steps products of matrices (Newton-Schulz)
        p = (1 - lr weight_decay) p - lr ratio x

    ratio is ``sqrt(max(1, rows / cols))``. Products are in bfloat16, as in torch, but of all
    matrices of one group and shape at once. Between steps it keeps 2 bytes for each number
    besides m (4 with ``stochastic_rounding``, 8 in float64). Sharded parameters are refused:
    products need whole matrices. A CUDA graph cannot capture a step.

    Arguments:
        lr: the learning rate, a number or a tensor.
        weight_decay: each step takes ``lr weight_decay`` of p away.
        momentum: how much of m each step keeps.
        nesterov: looks one step of m ahead.
        ns_coefficients: a, b, c of ``a x + (b A + c A^2) x``, where ``A = x x^T``.
        eps: the least norm that u is divided by.
        ns_steps: how often that is done, below 100.
        adjust_lr_fn: None or ``"original"`` for the ratio above; ``"match_rms_adamw"`` for ``0.2
            sqrt(max(rows, cols))``, with which AdamW's lr and weight_decay fit;
            ``"spectral_unclamped"`` for ``sqrt(rows / cols)`` (in torch since 2.14).

    Example:
        >>> model = torch.nn.Linear(8, 8, bias=False)
        >>> opt = Muon(model.parameters(), lr=1e-3)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    peer_counts = False
    not_numbers = ("params", "adjust_lr_fn")
    scalars_on_tensors = True
    limits = Limits(lr=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE, momentum=NOT_NEGATIVE,
                    eps=NOT_NEGATIVE)  # fmt: skip
    _walks: Walks | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr, eps = check.one_number(lr, "lr"), check.one_number(eps, "eps")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        momentum = check.one_number(momentum, "momentum")
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        named = {"Learning rate": lr, "momentum": momentum, "weight decay": weight_decay}
        for name, value in named.items():
            if not 0.0 <= value:
                raise ValueError(f"{name} should be >= 0 but is: {value}")
        check_adjustment(adjust_lr_fn)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": check.number(ns_coefficients, "ns_coefficients"),
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)
        for _, _, param in self._parameters():
            if param.ndim != 2:
                raise ValueError(
                    "Muon only supports 2D parameters whereas we found a parameter with size: "
                    f"{param.size()}"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._counts_in_states():
            start_counters(self.state, "momentum_buffer")

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        steps, coefficients = group["ns_steps"], group["ns_coefficients"]
        if not isinstance(steps, int) or steps < 0:
            raise TypeError(
                f"{self._name_group(group)}: ns_steps should be a whole number of 0 or more but "
                f"is: {steps!r}"
            )
        if steps >= 100:
            raise ValueError("Number of steps must be less than 100 for computational efficiency")
        if not isinstance(coefficients, (tuple, list)) or len(coefficients) != 3:
            raise ValueError("Coefficients must be a tuple of exactly 3 values")
        check_adjustment(group["adjust_lr_fn"])

    def _check_param(self, where: check.Where, group: Group, param: Tensor, grad: Tensor) -> None:
        name = type(self).__name__
        if param.is_complex():
            raise RuntimeError(f"Muon does not support complex parameters: {name}: {where}")
        if grad.is_sparse or param.is_sparse:
            raise RuntimeError(f"Muon does not support sparse gradients: {name}: {where}")
        if shards.is_dtensor(param) or flat.piece_of(param) is not None:
            raise RuntimeError(
                f"{name}: {where} is sharded, and its products need the whole matrix. Leave it "
                "unsharded, as DDP does, or optimize it with AdamW."
            )
        if param.ndim != 2:
            raise ValueError(
                f"Param gradient must be a 2D matrix: {name}: {where}. Optimize it with AdamW."
            )
        super()._check_param(where, group, param, grad)

    def _counts_in_states(self) -> bool:
        return self.stochastic_rounding

    def _new_state(self, group: Group, param: Tensor, grad: Tensor) -> State:
        dtype = self._dtype_of_state("momentum_buffer", grad.dtype, param)
        return {"momentum_buffer": torch.zeros_like(grad, dtype=dtype)}

    def _state_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        return {"momentum_buffer": param.shape}

    def _rule(self, group: Group, param: Tensor) -> str:
        return "muon_average"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, muon.average_scalars)
        return formula(step, momentum=scalar(group["momentum"]), nesterov=bool(group["nesterov"]))

    def _descend_scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, muon.descend_scalars)
        return formula(
            step,
            lr=scalar(group["lr"]),
            weight_decay=scalar(group["weight_decay"]),
            ratio=muon.ratio_of(group["adjust_lr_fn"], *group["shape"]),
        )

    def _run(
        self,
        plan: Plan,
        rows: list[HostRows | Tensor],
        factor: Tensor | None,
        found_inf: Tensor | None,
        capturing: bool,
    ) -> None:
        """The plan itself is not run: it checks, counts and clips. The walks have rows of their
        own, of counters that it has checked."""
        if capturing:
            raise RuntimeError(
                f"{type(self).__name__}: a CUDA graph cannot capture its step. Step outside the "
                "graph."
            )
        lists, walks = self._lists(), self._walks
        if walks is None or not walks.hold(plan, lists, self.state):
            walks = self._walks = Walks(plan, self._owner(), lists, self.state)
        groups = [
            {**self.param_groups[own.group], "shape": own.matrices.shape[1:]}
            for own in walks.batches
        ]
        of_first, of_second = (
            rows_of(walk, groups, scalars, self._waits_for_device, lambda _: None)
            for walk, scalars in (
                (walks.first, self._scalars), (walks.second, self._descend_scalars)
            )
        )  # fmt: skip
        walks.first.run(of_first, factor, found_inf)
        for own, group in zip(walks.batches, groups, strict=True):
            orthogonalize(own.matrices, group["ns_coefficients"], group["ns_steps"], group["eps"])
        walks.second.run(of_second, None, found_inf)
