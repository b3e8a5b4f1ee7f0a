"""torch.optim.Adafactor, in a constant number of launches for all parameters of all groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan import flat, shards
from ..plan.launcher import BackendName
from ..rules import adafactor
from . import precision
from .base import Group, State
from .factored import FactoredOptimizer
from .hyperparams import for_steps
from .limits import AT_LEAST_ONE, NOT_NEGATIVE, NOT_POSITIVE, Limits
from .shared_arguments import with_shared_arguments


@with_shared_arguments
class Adafactor(FactoredOptimizer):
    """Adafactor: same arguments, states and errors as ``torch.optim.Adafactor``.

        c = t^beta2_decay,  rho = min(lr, 1/sqrt(t)),  alpha = max(eps2, rms(p)) rho
        R = (1-c) R + c mean_j(g^2),   C = (1-c) C + c mean_i(g^2),   V = R C / max(mean(R), eps1)
        u = g / max(sqrt(V), eps1)                     (a vector: V = (1-c) V + c g^2)
        p = (1 - lr weight_decay) p - alpha / max(1, rms(u)/d) u

    All arithmetic is float32 or wider, whatever the dtypes. ``eps[0]=None`` means the machine
    epsilon of each parameter's dtype. ``foreach`` is accepted and kept, but has no effect.

    Arguments:
        lr: the largest step size, a number or a tensor; 1/sqrt(t) when that is smaller.
        beta2_decay: how fast c falls as the steps go on; not positive.
        eps: ``eps1``, the least divisor, and ``eps2``, the least rms(p) that scales the step.
        d: an update with a larger rms is scaled down to this one.
        weight_decay: each step takes ``lr weight_decay`` of p away.
        capturable: keeps the step counters on the GPU. torch's Adafactor has no such option. A step
            then never waits for the GPU, and can be captured in a CUDA graph after one step outside
            it. A graph replays the numbers it was captured with, so a learning rate that changes
            must be a tensor on the GPU. It is an error if a parameter is on the CPU.
        state_dtype: of the states. None: the gradient's, as in torch. With any dtype, and with the
            next two options, all of them are float32: they are few, and less would save nothing. A
            checkpoint of another dtype is converted when it is loaded.

    Example:
        >>> model = torch.nn.Linear(8, 8)
        >>> opt = Adafactor(model.parameters(), lr=1e-2)
        >>> model(torch.ones(8)).sum().backward()
        >>> opt.step()
    """

    scalars_on_tensors = True
    reduced = {"row_var": -1, "col_var": -2}  # noqa: RUF012 (never changed)
    is_capped = True
    limits = Limits(
        lr=NOT_NEGATIVE,
        beta2_decay=NOT_POSITIVE,
        eps=(NOT_NEGATIVE._replace(may_be_none=True), NOT_NEGATIVE),
        d=AT_LEAST_ONE,
        weight_decay=NOT_NEGATIVE,
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        max_grad_norm: float | None = None,
        state_dtype: precision.StateDtype = None,
        master_weights: bool | int = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        backend: BackendName | None = None,
    ) -> None:
        lr, d = check.one_number(lr, "lr"), check.one_number(d, "d")
        beta2_decay = check.one_number(beta2_decay, "beta2_decay")
        eps = check.two_numbers(eps, "eps")
        weight_decay = check.one_number(weight_decay, "weight_decay")
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not 0.0 <= lr:
            raise ValueError(f"Learning rate should be >= 0 but is: {lr}")
        if not 0.0 >= beta2_decay:
            raise ValueError(f"beta2_decay should be <= 0 but is: {beta2_decay}")
        if eps[0] is not None and not 0.0 <= eps[0]:
            raise ValueError(f"epsilon1 should be >= 0 but is: {eps[0]}")
        if not 0.0 <= eps[1]:
            raise ValueError(f"epsilon2 should be >= 0 but is: {eps[1]}")
        if not 1.0 <= d:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {d}")
        if not 0.0 <= weight_decay:
            raise ValueError(f"weight_decay should be >= 0 but is: {weight_decay}")
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
        }
        stored = precision.checked(
            state_dtype, master_weights, stochastic_rounding, seed, type(self).__name__
        )
        super().__init__(params, defaults, backend, max_grad_norm, stored)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("foreach", None)
            # torch's checkpoints do not have it: then the constructor's value is used.
            group.setdefault("capturable", self.defaults.get("capturable", False))

    def _check_param(self, where: check.Where, group: Group, param: Tensor, grad: Tensor) -> None:
        super()._check_param(where, group, param, grad)
        self._check_capturable(where, group, param)

    def _new_state(self, group: Group, param: Tensor, grad: Tensor) -> State:
        shapes = self._state_shapes(group, param)
        dtype = self._dtype_of_state("variance", grad.dtype, param)  # of all second moments
        if "variance" in shapes:
            like = grad if type(param) in shards.PLAIN else shards.state_model(param, grad)
            return {"variance": torch.zeros_like(like, dtype=dtype)}
        return {
            key: shards.zeros(param, grad, shape, dtype, self.reduced[key])
            for key, shape in shapes.items()
        }

    def _state_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        # A flat piece is a part of a shape. There may be many parameters, and few are flat.
        is_flat = flat.DECLARED or "_fsdp_flattened" in param.__dict__
        shape = flat.whole_shape(param) if is_flat else param.shape
        if len(shape) < 2:
            return {"variance": param.shape}
        *batch, rows, cols = shape
        return {
            "row_var": torch.Size((*batch, rows, 1)),
            "col_var": torch.Size((*batch, 1, cols)),
        }

    def _rule(self, group: Group, param: Tensor) -> str:
        return "adafactor"

    def _scalars(self, group: Group, step: Any, dtype: torch.dtype) -> dict[str, Any]:
        scalar, formula = for_steps(step, adafactor.torch_scalars)
        eps1, eps2 = group["eps"]
        return formula(
            step,
            lr=scalar(group["lr"]),
            beta2_decay=group["beta2_decay"],
            eps1=torch.finfo(dtype).eps if eps1 is None else eps1,
            eps2=eps2,
            d=group["d"],
            weight_decay=group["weight_decay"],
        )
