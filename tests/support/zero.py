"""DeepSpeed in tests: real engines, as light as they can be."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist


def prepare() -> Any:
    """Imports DeepSpeed for processes that are set up. Without a GPU it would compile a kernel for
    messages in shared memory, which takes minutes; ZeRO sends none of these."""
    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, DS_ACCELERATOR="cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def engine_of(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype = torch.float32,
    stage: int = 1,
    **zero: Any,
) -> Any:
    """An engine that clips nothing. With bfloat16 the model is in bfloat16, ZeRO's vectors are in
    float32."""
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, **zero},
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    engine, *_ = prepare().initialize(model=model, optimizer=optimizer, config=config)
    return engine
