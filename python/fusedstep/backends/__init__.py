"""Lists the backends, and picks one for each device."""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any, cast

import torch

from .. import native
from ..gpu.tables import GPUS
from ..plan.launcher import Backend, BackendName
from .cpu import CpuBackend
from .cuda import CUDA
from .reference import ReferenceBackend
from .triton import TritonBackend

VARIABLE = "FUSEDSTEP_BACKEND"

# `auto` takes the first one that works.
BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (CpuBackend(), CUDA, TritonBackend(), ReferenceBackend())
}


def check_name(name: Any, source: str = "backend") -> BackendName | None:
    """Checks a backend's name. None and "auto" leave the choice to `choose`."""
    if name is None or name == "auto" or name in BACKENDS:
        return cast("BackendName | None", name)
    choices = ", ".join(repr(choice) for choice in ("auto", *BACKENDS))
    raise ValueError(f"{source} should be one of {choices} but is: {name!r}")


def choose(name: str | None, device: torch.device, where: object) -> Backend:
    """The backend for tensors on `device`. A backend chosen by name runs or raises; it is never
    replaced. `where` names a parameter in the error."""
    source = "backend" if name is not None else VARIABLE
    asked = check_name(name if name is not None else os.environ.get(VARIABLE) or "auto", source)
    if device.type == "cpu" and native.level_error:
        raise ValueError(native.level_error)
    if asked is not None and asked != "auto":
        backend = BACKENDS[asked]
        if backend.why_absent():
            raise RuntimeError(f"{source}={asked!r} is not available: {backend.why_absent()}")
        if device.type not in backend.devices():
            raise RuntimeError(
                f"{source}={asked!r} updates tensors on {', '.join(backend.devices())}, "
                f"not {where}. Use 'auto', or move the parameter."
            )
        return backend
    for candidate in _for_type(device.type):
        if not candidate.why_absent():
            return candidate
    raise RuntimeError(f"no backend updates tensors on {device.type}: {where}")


def check_flat(name: str | None, device: torch.device, where: object) -> None:
    """Refuses a GPU backend that was chosen by name for a flat piece of a matrix. With 'auto',
    torch's operations update it."""
    source = "backend" if name is not None else VARIABLE
    asked = name if name is not None else os.environ.get(VARIABLE)
    if asked in ("cuda", "triton"):
        raise RuntimeError(
            f"{source}={asked!r} cannot update {where} on {device}, because it is a flat piece of "
            "a matrix. Use 'auto', which updates such pieces with torch's operations and all else "
            "with kernels; or shard with FSDP2 (fully_shard), whose parameters keep their rows."
        )


def why_not_before(name: str, device: torch.device) -> dict[str, str]:
    """The backends that `auto` prefers on this device to the one of that name, and why each of them
    cannot run."""
    found: dict[str, str] = {}
    for candidate in _for_type(device.type):
        if candidate.name == name:
            break
        found[candidate.name] = candidate.why_absent()
    return found


def warn_if_slow(backend: Backend, device: torch.device) -> None:
    """Warns if plain torch updates tensors only because no kernels can: the results are right, but
    it is slow."""
    if backend.name == ReferenceBackend.name and device.type in ("cpu", *GPUS):
        others = [other for other in _for_type(device.type) if other.name != backend.name]
        reasons = {other.name: other.why_absent() for other in others}
        if reasons and all(reasons.values()):
            said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            _warn_once(f"{device.type} tensors are updated by plain torch. {said}")


def _for_type(device_type: str) -> list[Backend]:
    return [backend for backend in BACKENDS.values() if device_type in backend.devices()]


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
