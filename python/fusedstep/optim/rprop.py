"""torch.optim.Rprop, in one launch for each device and set of dtypes, whatever the groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan.launcher import BackendName
from ..rules import rprop
from . import peer_errors, precision
from .base import Group
from .elementwise import ElementwiseOptimizer, as_number
from .hyperparams import for_steps
from .limits import ABOVE_ONE, ANY_NUMBER, BETWEEN_0_AND_1, NOT_NEGATIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class Rprop(ElementwiseOptimizer):
    """Rprop: same arguments, states and errors as ``torch.optim.Rprop``.

        x = g q
        z = z etas[1] if x > 0, z etas[0] if x < 0, else z; not outside step_sizes
        q = 0 if x < 0, else g
        p = p - sign(q) z

    Only the signs of gradients count. So it suits full batches, not noisy ones.

    Arguments:
        lr: the first z, a number or a tensor.
        etas: what a step size z is multiplied by when the sign of g changes, and when it does not.
        step_sizes: the smallest and the largest z.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = Rprop(model.parameters(), lr=1e-2)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    squares = frozenset(("step_size",))
    limits = Limits(
        lr=NOT_NEGATIVE, etas=(BETWEEN_0_AND_1, ABOVE_ONE), step_sizes=(ANY_NUMBER, ANY_NUMBER)
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr, etas = check.one_number(lr, "lr"), check.two_numbers(etas, "etas")
        step_sizes = check.two_numbers(step_sizes, "step_sizes")
        peer_errors.check_lr(lr)
        if not 0.0 < etas[0] < 1.0 < etas[1]:
            raise ValueError(f"Invalid eta values: {etas[0]}, {etas[1]}")
        defaults = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def _keys(self, group: Group) -> tuple[str, ...]:
        return "prev", "step_size"

    def _first(self, group: Group, key: str) -> float | Tensor:
        return as_number(group["lr"]) if key == "step_size" else 0.0

    def _rule(self, group: Group, param: Tensor) -> str:
        return "rprop"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, rprop.scalars)
        return formula(
            step,
            etas=tuple(map(scalar, group["etas"])),
            step_sizes=tuple(map(scalar, group["step_sizes"])),
        )
