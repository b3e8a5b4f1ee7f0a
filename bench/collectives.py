"""Counts the collectives of a step, and the bytes that they carry."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMESPACES = ("c10d", "_c10d_functional")
WORDS = ("reduce", "gather", "scatter", "broadcast", "alltoall", "all_to_all")


class Collectives(TorchDispatchMode):
    """Counts while it is entered. The bytes of a collective are those of its largest argument or
    result: of an all-reduce the numbers that are added up, of an all-gather what all give
    together."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    @property
    def number(self) -> int:
        return self.calls.total()

    def __torch_dispatch__(
        self,
        func: Any,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if DTensor in types:
            return NotImplemented  # it calls operators of local tensors, and they come here
        result = func(*args, **(kwargs or {}))
        name = func.name().split("::")[1].split(".")[0]
        if func.namespace in NAMESPACES and any(word in name for word in WORDS):
            self.calls[name] += 1
            self.bytes += max(map(bytes_of, [*args, result]), default=0)
        return result


def bytes_of(value: Any) -> int:
    """The bytes of all tensors in a value."""
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def counted(step: Callable[[], object]) -> Collectives:
    with Collectives() as collectives:
        step()
    return collectives
