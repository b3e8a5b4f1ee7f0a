"""Checks that memory is freed as soon as nothing refers to it."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch


def assert_freed(make: Callable[[], tuple[Any, list[torch.Tensor]]]) -> None:
    """What `make` returns, an object and its parameters, needs no garbage collector to be freed."""
    gc.collect()
    gc.disable()
    try:
        own, params = make()
        gone, param_gone = weakref.ref(own), weakref.ref(params[1])
        del own, params
        assert gone() is None
        assert param_gone() is None
    finally:
        gc.enable()
