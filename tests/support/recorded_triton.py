"""Launches of the Triton backend, written down and not carried out."""

import fusedstep.backends.triton
from fusedstep.kernels import launch


def constant(arguments, name):
    """What a kernel is specialized on: an argument, or a field of its configuration."""
    return getattr(arguments.get("CFG"), name, arguments.get(name))


def register(monkeypatch):
    """(kind of work, arguments) of each launch; None for an elementwise rule. The backend takes
    tensors of the CPU."""
    found = []

    def run(kernel, programs, arguments, options):
        found.append((constant(arguments, "KIND"), arguments))

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(fusedstep.backends.triton.TritonBackend, "why_absent", lambda self: "")
    take(monkeypatch, "cpu")
    return found


def take(monkeypatch, device_type):
    monkeypatch.setattr(
        fusedstep.backends.triton.TritonBackend, "devices", lambda self: (device_type,)
    )
