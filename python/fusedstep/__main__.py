"""`python -m fusedstep info`: what is installed here, each backend, and why one is absent."""

from __future__ import annotations

import argparse
import platform

import torch

from . import __version__, backends


def info() -> str:
    """Versions, and a line for each backend in the order in which `auto` prefers them."""
    python = platform.python_version()
    lines = [f"fusedstep {__version__}, torch {torch.__version__}, Python {python}"]
    for name, backend in backends.BACKENDS.items():
        reason = backend.why_absent()
        lines.append(f"  {name:10} " + (f"absent: {reason}" if reason else backend.about()))
    for device in ("cpu", "cuda", "xpu", "mps"):
        running = backends.choose("auto", torch.device(device), f"a tensor on {device}")
        lines.append(f"{device} tensors: auto takes {running.name}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fusedstep")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="backends, and why one is absent")
    parser.parse_args()
    print(info())


if __name__ == "__main__":
    main()
