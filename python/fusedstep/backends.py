"""The backends behind one signature, and which of them runs where."""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

from . import cpu, cuda, reference, triton
from .gpu.tables import GPUS
from .plan import Bucket

VARIABLE = "FUSEDSTEP_BACKEND"


class Backend(Protocol):
    """What a backend module offers. `launch` is the one signature: a bucket, its float64 rows of
    scalars, then inverse gradient scale and found_inf on a device. The rows are on the host, or on
    the bucket's device if that is where its counters are: then nothing may wait for them."""

    name: str

    def why_absent(self) -> str: ...
    def devices(self) -> tuple[str, ...]: ...
    def about(self) -> str: ...
    def prepare(self, bucket: Bucket) -> None: ...
    def scratch_bytes(self, bucket: Bucket) -> int: ...
    def launch(
        self,
        bucket: Bucket,
        scalars: Tensor,
        inv_grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None: ...


# In the order in which `auto` prefers them.
BACKENDS: dict[str, Any] = {
    backend.name: backend for backend in (cpu, cuda.BACKEND, triton, reference)
}


def check_name(name: str | None) -> str | None:
    """A backend's name as an optimizer was given it; None and "auto" leave the choice to us."""
    if name is None or name == "auto":
        return name
    if name not in BACKENDS:
        choices = ", ".join(repr(choice) for choice in ("auto", *BACKENDS))
        raise ValueError(f"backend should be one of {choices} but is: {name!r}")
    return name


def warn_if_slow(launcher: Backend, device: torch.device) -> None:
    """Plain torch is right, but not what somebody with a GPU installs this package for."""
    if launcher.name == reference.name and device.type in GPUS:
        better = [own for own in _for_type(device.type) if own.name != reference.name]
        reasons = {own.name: own.why_absent() for own in better}
        if reasons and all(reasons.values()):
            said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            _warn_once(f"{device.type} tensors are updated by plain torch. {said}")


def _for_type(device_type: str) -> list[Backend]:
    return [own for own in BACKENDS.values() if device_type in own.devices()]


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def choose(name: str | None, device: torch.device, where: object) -> Backend:
    """The backend for tensors on `device`. What was asked for by name is taken or refused, never
    replaced; `where` names a parameter for the refusal."""
    asked = name if name is not None else os.environ.get(VARIABLE) or "auto"
    source = "backend" if name is not None else VARIABLE
    if asked != "auto":
        if asked not in BACKENDS:
            choices = ", ".join(repr(choice) for choice in ("auto", *BACKENDS))
            raise ValueError(f"{source} should be one of {choices} but is: {asked!r}")
        backend: Backend = BACKENDS[asked]
        if backend.why_absent():
            raise RuntimeError(f"{source}={asked!r} is not available: {backend.why_absent()}")
        if device.type not in backend.devices():
            raise RuntimeError(
                f"{source}={asked!r} updates tensors on {', '.join(backend.devices())}, "
                f"not {where}. Ask for 'auto', or move the parameter."
            )
        return backend
    for candidate in _for_type(device.type):
        if not candidate.why_absent():
            return candidate
    raise RuntimeError(f"no backend updates tensors on {device.type}: {where}")
