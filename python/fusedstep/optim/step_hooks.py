"""What torch.optim puts around every `step`: a range for profilers, and hooks. Here it takes 2 us
instead of 11 while nobody looks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd import (
    _profiler_enabled,
    _record_function_with_args_enter,
    _record_function_with_args_exit,
)
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

P = ParamSpec("P")
R = TypeVar("R")


def around_step(func: Callable[P, R]) -> Callable[P, R]:
    """Replaces torch.optim.Optimizer.profile_hook_step, and calls it if anything needs it."""
    in_full = torch.optim.Optimizer.profile_hook_step(func)

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        self: Any = args[0]
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.compiler.is_compiling()  # first: torch 2.6 cannot trace the next call
            or _profiler_enabled()
        ):
            return in_full(*args, **kwargs)
        # The same range, for observers that are no profilers.
        seen = _record_function_with_args_enter(f"Optimizer.step#{type(self).__name__}.step")
        try:
            return func(*args, **kwargs)
        finally:
            _record_function_with_args_exit(seen)

    return wrapper
