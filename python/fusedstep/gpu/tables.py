"""Keeps what kernels read besides tensors on a bucket's device: addresses, rows, scalars.

Nothing here waits for the device. Uploads go through page-locked memory, and only if something
changed; the allocator frees that memory after the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..plan import devices
from ..plan.bucket import Bucket
from ..plan.rows import HostRows

GPUS = ("cuda", "xpu")  # torch calls ROCm's devices cuda


def on_device(device: torch.device) -> Any:
    """Makes `device` and its current stream the ones that kernels are launched on."""
    if device.type == "cpu":  # the interpreter or the simulator
        return devices.NO_SWITCH
    return devices.made_current(device)


def current_stream(device: torch.device) -> Any:
    """A GPU's current stream, only to be compared and to launch on: its number where torch's
    devices are called cuda, since torch's object takes several us to make. None on the CPU."""
    return _reader_of_streams(device)()


@cache
def _reader_of_streams(device: torch.device) -> Callable[[], Any]:
    if device.type == "cpu":
        return lambda: None
    read = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # as Triton and Inductor do
    if device.type == "cuda" and read is not None and device.index is not None:
        return partial(read, device.index)
    if device.type == "cuda":
        return lambda: stream_object(device).cuda_stream
    return partial(stream_object, device)


def stream_object(device: torch.device) -> Any:
    """A GPU's current stream, as torch's object."""
    return torch.get_device_module(device).current_stream(device)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a host tensor to the device."""
    if device.type == "cpu":
        return tensor.clone()
    return tensor.pin_memory().to(device, non_blocking=True)


class Tables:
    """The tables of a bucket that can change between steps: `table`, `scalar_row_of`, `scalars`,
    `controls`. Up to `by_value` scalars stay on the host if they are there: a launch takes them."""

    def __init__(self, bucket: Bucket, by_value: int = 0) -> None:
        self.device, self.by_value = bucket.device, by_value
        self.scalar_dtype = devices.widest_float(bucket.device)
        self.table = self.scalar_row_of = torch.empty(0, device=self.device)
        self.scalar_row_of_host: Tensor | None = None  # what `scalar_row_of` is a copy of
        self.idle = upload(
            torch.tensor([1.0, 0.0], dtype=self.scalar_dtype, device="cpu"), self.device
        )
        # A graph reads page-locked memory at every replay, and a capture cannot allocate any.
        self.for_graph: Tensor | None = None
        if self.device.type in GPUS:
            self.for_graph = torch.empty_like(bucket.table, pin_memory=True)

    def current(
        self,
        bucket: Bucket,
        rows: HostRows | Tensor,
        inv_grad_scale: Tensor | None,
        found_inf: Tensor | None,
        capturing: bool = False,
    ) -> dict[str, Any]:
        """The arguments of the kernels for one step: tensors, and rows that a launch takes."""
        if self.scalar_row_of_host is not bucket.rows.scalar_row_of:
            if capturing:  # page-locked memory for the copy cannot be allocated now
                raise RuntimeError(
                    "the step that is captured takes its learning rate, decay or step counts from "
                    "other places than the step before it. Run one warm-up step before capture, "
                    "with the same options and the same devices of lr and counters."
                )
            self.scalar_row_of_host = bucket.rows.scalar_row_of
            self.scalar_row_of = upload(bucket.rows.scalar_row_of, self.device)
        if not isinstance(rows, HostRows):
            rows = rows.to(self.scalar_dtype)
        elif len(rows.numbers) > self.by_value:
            rows = upload(rows.tensor().to(self.scalar_dtype), self.device)
        return {
            "table": self.table_of(bucket, capturing),
            "scalar_row_of": self.scalar_row_of,
            "scalars": rows,
            "controls": self._controls(inv_grad_scale, found_inf),
        }

    def table_of(self, bucket: Bucket, capturing: bool) -> Tensor:
        """The bucket's table on the device."""
        if capturing:
            # The graph gets its own copy: gradients may move later. A new plan is made then, and
            # the graph keeps this plan, so one table for graphs is enough.
            assert self.for_graph is not None
            self.for_graph.copy_(bucket.table)
            return self.for_graph.to(self.device, non_blocking=True)
        if bucket.table_changed:
            self.table = upload(bucket.table, self.device)
            bucket.table_changed = False
        return self.table

    def _controls(self, inv_grad_scale: Tensor | None, found_inf: Tensor | None) -> Tensor:
        """Inverse gradient scale and found_inf, from any device, as one tensor on this device."""
        if inv_grad_scale is None and found_inf is None:
            return self.idle
        given = (inv_grad_scale, found_inf)
        return torch.stack(
            [
                default
                if value is None
                else devices.to_device(value.reshape(()), self.device, self.scalar_dtype)
                for default, value in zip(self.idle.unbind(), given, strict=True)
            ]
        )

    def held(self) -> tuple[Tensor, ...]:
        """The tensors it keeps on the device."""
        return self.table, self.scalar_row_of, self.idle
