"""Budgets of compiled kernels. `make budgets` writes the files from what the compilers report, and
the gates compare with them exactly, so a change shows in the diff."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
REGISTERS = 65536  # for each multiprocessor of every NVIDIA GPU here
Table = Mapping[str, Mapping[str, float]]  # kernel -> what is counted -> number


def allocated(registers: int) -> int:
    """The registers that a thread takes up: they are allocated 8 at a time."""
    return -(-registers // 8) * 8


@dataclass(frozen=True)
class Budgets:
    """The budgets of one backend's kernels."""

    file: Path

    def __str__(self) -> str:
        return str(self.file.relative_to(TESTS).with_suffix(""))

    @property
    def measured_with(self) -> str:
        return _read(self.file)["measured with"]

    @property
    def kernels(self) -> dict[str, dict[str, float]]:
        return _read(self.file)["kernels"] if self.file.exists() else {}

    def write(self, measured_with: str, kernels: Table) -> None:
        self.file.write_text(text(measured_with, kernels))
        _read.cache_clear()

    def of(self, kernel: str, what: str) -> float | None:
        """A kernel's budget; None if it is not listed."""
        return self.kernels.get(kernel, {}).get(what)

    def complaint(self, kernel: str, what: str, registers: int) -> str:
        """What is wrong with this number of registers; empty if it is within budget."""
        budget = self.of(kernel, what)
        if budget is None:
            return f"{kernel}, {what}: {registers} registers and no budget. {self.advice}"
        return f"{registers} registers of {budget}" if registers > budget else ""

    @property
    def advice(self) -> str:
        name = self.file.relative_to(TESTS.parent)
        return f"Run `make budgets`, which writes {name}, and review its diff."

    def differences(self, measured: Table) -> list[str]:
        """The differences between the file and what was measured, and the advice."""
        kept = self.kernels
        said = [
            f"{kernel}: measured {dict(measured.get(kernel, {}))}, listed {kept.get(kernel, {})}"
            for kernel in sorted({*measured, *kept})
            if measured.get(kernel) != kept.get(kernel)
        ]
        return [*said, self.advice] if said else []


@functools.cache
def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def text(measured_with: str, kernels: Table) -> str:
    """The file, with a line for each kernel, sorted, so that a diff shows which kernels changed."""
    lines = [f"    {json.dumps(name)}: {json.dumps(kernels[name])}" for name in sorted(kernels)]
    head = f'{{\n  "measured with": {json.dumps(measured_with)},\n  "kernels": {{\n'
    return head + ",\n".join(lines) + "\n  }\n}\n"


def of_triton(release: str) -> Budgets:
    """The budgets of a release of Triton, such as 3.7."""
    return Budgets(TESTS / "triton" / "budgets" / f"{release}.json")


def installed_triton() -> str:
    """The release that is installed here, or else the one that `make test` installs."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "3.7"
    return ".".join(version.split(".")[:2])


CUDA = Budgets(TESTS / "cuda" / "budgets.json")
TRITON_RELEASES = sorted(file.stem for file in (TESTS / "triton" / "budgets").glob("*.json"))
TRITON = of_triton(installed_triton())  # its file is missing for a release without budgets
