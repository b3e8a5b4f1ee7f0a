"""Counts the calls of torch's operators."""

import collections

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Counts the torch operators that are called while it is active."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def waits(self):
        """The names of those that wait for a device."""
        words = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "unique")
        return [name for name in self.count if name.split(".")[1] in words]
