"""torch.optim.SparseAdam behind our names. A kernel of ours would save nothing: it would walk a few
rows that the step must gather first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import backends, check
from ..plan.launcher import BackendName


class SparseAdam(torch.optim.SparseAdam):
    """Adam for sparse gradients: torch's own class and step, on CPUs and GPUs.

        m = beta1 m + (1 - beta1) g                       only in rows that occur in g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)

    Rows that the gradient does not have keep p, m and v. An index that occurs twice in a gradient
    counts once, with the sum. Arguments, states, errors and checkpoints are torch's. It is here so
    that configs and ``register`` find every optimizer by its name. It has no options of ours
    besides ``backend``, and no gradient release.

    Arguments:
        params: parameters, or groups: dicts with ``params`` and with the arguments that are the
            group's own.
        lr: the learning rate, a number or a tensor.
        betas: how much of m and v each step keeps.
        eps: added to the root of v.
        maximize: ascends: the sign of every g is changed.
        backend: None, ``"auto"`` or ``"reference"``, which all mean torch's operations. Others are
            refused, because they have no kernel for it. ``FUSEDSTEP_BACKEND`` changes nothing.

    Example:
        >>> model = torch.nn.Embedding(8, 4, sparse=True)
        >>> opt = SparseAdam(model.parameters(), lr=1e-2)
        >>> model(torch.tensor([2, 5])).sum().backward()
        >>> opt.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        *,
        backend: BackendName | None = None,
    ) -> None:
        if backends.check_name(backend) not in (None, "auto", "reference"):
            raise ValueError(
                f"backend={backend!r} has no kernel for SparseAdam, which runs torch's operations "
                "on every device. Use 'auto' or 'reference', or leave it out."
            )
        lr, eps = check.one_number(lr, "lr"), check.one_number(eps, "eps")
        super().__init__(params, lr, check.two_numbers(betas, "betas"), eps, maximize)
