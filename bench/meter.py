"""What we measure of a training run: times, memory, and the bits of its weights."""

import hashlib
import time
from pathlib import Path
from typing import Any

import torch


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of the bits of all parameters."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def mark(device: str) -> Any:
    """A point in time. On a GPU it is when the work so far is done."""
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(first: Any, last: Any, device: str) -> float:
    if device == "cpu":
        return float(last - first)
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def memory(device: str) -> tuple[int | None, int | None]:
    """Bytes in use now, and at most so far. On a CPU we count the pages of this process. We do not
    ask `getrusage`: it starts from what the parent used when it started this process."""
    if device == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None, None
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024
