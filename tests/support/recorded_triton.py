"""Records the launches of the Triton backend instead of running them."""

import fusedstep.backends.triton
from fusedstep.kernels import launch


def constant(arguments, name):
    """A constant of a kernel: an argument, or a field of its configuration."""
    return getattr(arguments.get("CFG"), name, arguments.get(name))


def register(monkeypatch):
    """A list that gets (kind of work, arguments) of each launch. The kind is None for an
    elementwise rule. The backend takes CPU tensors."""
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
