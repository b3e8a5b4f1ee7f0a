"""Clipping inside the step: `max_grad_norm` of every optimizer."""

from __future__ import annotations

from torch import Tensor

from ..plan import devices
from ..plan.plan import Plan
from .grad_norm import GradientNorm, SharedSums, checked_limit, clip_factor, why_no_norm
from .members import CheckedOptimizer


class ClippedOptimizer(CheckedOptimizer):
    """Keeps the limit, and makes the factor of all gradients of a step."""

    # The norm of all gradients, unscaled, before they were clipped: of the last step with a
    # `max_grad_norm`. It is a tensor of no dimensions on their device, so nobody waits for it.
    grad_norm: Tensor | None = None

    _max_grad_norm: float | None = None
    _norm: GradientNorm | None = None  # of the present plan
    _others_wait = False  # whether processes wait for this one's part of the norm

    @property
    def max_grad_norm(self) -> float | None:
        """The largest norm of all gradients together; None for no clipping. It may be changed
        between steps. A state dict does not have it, and a CUDA graph keeps the one of its capture.

        No square overflows. On a GPU numbers below 1e-34 lose digits. On a device without float64 a
        norm below 1e-22 is 0, and one above 1e19 infinite.
        """
        return self._max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        self._max_grad_norm = checked_limit(value, type(self).__name__)
        if self._max_grad_norm is None:
            self._norm = self.grad_norm = None

    def _clipped(self, plan: Plan, inv_grad_scale: Tensor | None, capturing: bool) -> Tensor | None:
        """The factor of all gradients: the inverse of their scale, and what clips them."""
        if self._max_grad_norm is None:
            return inv_grad_scale
        if self._norm is None or self._norm.plan is not plan:
            if capturing:
                raise RuntimeError(
                    f"{type(self).__name__}: the captured step has a max_grad_norm, but the step "
                    "before it had none. Run one warm-up step with it before the capture."
                )
            for where, _, param in self._parameters() if self._may_share() else ():
                if problem := why_no_norm(param):
                    raise RuntimeError(f"{type(self).__name__}: max_grad_norm: {where} {problem}.")
            self._norm = GradientNorm(plan, self._shared_sums())
        self._others_wait = False
        self.grad_norm = self._norm(inv_grad_scale, capturing)
        factor = clip_factor(self.grad_norm, self._max_grad_norm)
        if inv_grad_scale is None:
            return factor
        return factor * devices.to_device(inv_grad_scale, factor.device)

    def _join_norm(self) -> None:
        """Takes part in the others' norm, after an error here, so that they do not wait."""
        if self._others_wait:
            self._others_wait = False
            shared = self._shared_sums()
            shared.add_up(shared.zeros())

    def _shared_sums(self) -> SharedSums:
        return SharedSums((param for *_, param in self._parameters()), self._may_share())
