"""The C++ backend for CPU tensors: hands buckets to `csrc/cpu`, which cuts and walks them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native
from .plan import Bucket
from .rules import RULES, layout

DTYPE_CODES = {
    torch.float32: layout.FLOAT32,
    torch.bfloat16: layout.BFLOAT16,
    torch.float16: layout.FLOAT16,
    torch.float64: layout.FLOAT64,
}
RULE_IDS = {name: index for index, name in enumerate(RULES)}

name = "cpu"


def why_absent() -> str:
    """Empty if the backend can run here, else the reason."""
    return native.reason


def devices() -> tuple[str, ...]:
    return ("cpu",)


def about() -> str:
    """What it was built for and what it runs on, in a line."""
    built = native.module
    pool = (
        f"{torch.get_num_threads()} threads of torch" if built.has_pool() else "1 thread, no OpenMP"
    )
    return f"C++, {built.active_level()} (this machine runs {', '.join(built.levels())}), {pool}"


def prepare(bucket: Bucket) -> None:
    """Cuts the bucket's tensors into work. Once for each plan."""
    bucket.backend_data = native.module.Bucket(
        RULE_IDS[bucket.rule.name],
        bucket.compute_dtype == torch.float64,
        bucket.kind == "vector",
        [DTYPE_CODES[dtype] for dtype in bucket.dtypes],
        bucket.table.data_ptr(),
        *bucket.table.shape,
    )
    bucket.backend_data.reserve(torch.get_num_threads())


def scratch_bytes(bucket: Bucket) -> int:
    return int(bucket.backend_data.scratch_bytes(torch.get_num_threads()))


def launch(
    bucket: Bucket, scalars: Tensor, inv_grad_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    """Carries out one step of the bucket; nothing happens if `found_inf` is not zero."""
    if found_inf is not None and found_inf.item():
        return
    bucket.backend_data.launch(
        bucket.row_of.data_ptr(),
        scalars.data_ptr(),
        scalars.shape[1],
        1.0 if inv_grad_scale is None else inv_grad_scale.item(),
        torch.get_num_threads(),
    )
