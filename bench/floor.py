"""The floor of a race on a CPU: a bare kernel that moves the bytes of a step in place, over as many
streams and by the same threads."""

import torch

from bench.lists import rule_of, tensors_held

FLOOR = "floor"  # its name among the contestants of a race


class Floor:
    """Walks parameters and gradients, and states that it makes. Every tensor but the gradient
    becomes itself xor the gradient, so the same call again restores it."""

    def __init__(self, values: list[tuple[torch.Tensor, torch.Tensor]], rule: str) -> None:
        from fusedstep import native

        if native.module is None:
            raise RuntimeError(native.reason)
        check(values)
        matrix, vector = tensors_held(rule_of(rule))
        held = [matrix if len(value.shape) > 1 else vector for value, _ in values]
        # For each parameter: p, g, then the states. Their values do not matter, but memory that was
        # never written would be one page of zeros.
        self.streams = [
            [value, gradient, *(value.clone() for _ in range(2, count))]
            for (value, gradient), count in zip(values, held, strict=True)
        ]
        self._table = torch.zeros(len(values), max(held) + 1, dtype=torch.int64)
        for row, own in zip(self._table, self.streams, strict=True):
            row[: len(own)] = torch.tensor([stream.data_ptr() for stream in own])
            row[-1] = own[0].numel()
        item_bytes = values[0][0].itemsize
        self._work = native.module.Floor(item_bytes, self._table.data_ptr(), *self._table.shape)

    def __call__(self) -> None:
        self._work.walk(torch.get_num_threads())

    @property
    def moved_bytes(self) -> int:
        """What a call reads and writes: every stream is read, and all but g are written."""
        return sum((2 * len(own) - 1) * own[0].nbytes for own in self.streams)


def check(values: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """The kernel takes addresses and one size of elements, so nothing later would see a mistake."""
    if not values:
        raise ValueError("a floor needs at least one parameter")
    dtype = values[0][0].dtype
    for index, (value, gradient) in enumerate(values):
        for name, tensor in (("parameter", value), ("gradient", gradient)):
            fits = (tensor.shape, tensor.dtype) == (value.shape, dtype)
            if not (fits and tensor.is_contiguous() and tensor.is_cpu):
                raise ValueError(
                    f"parameter {index}: its {name} is {tuple(tensor.shape)} {tensor.dtype} with "
                    f"strides {tensor.stride()} on {tensor.device}, expected {tuple(value.shape)} "
                    f"{dtype}, contiguous, on the CPU"
                )
