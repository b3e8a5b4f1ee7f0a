"""The text that training runs read: the characters of this repository's source files."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
FOLDERS = ("bench", "csrc", "kernels", "python", "tests")
WRITTEN_BY_THE_BENCH = (Path("bench/out"), Path("bench/results"))
KINDS = (".py", ".h", ".cpp", ".cuh", ".cu", ".md")
VALIDATION_SHARE = 0.1  # at the end


def repository_text(root: Path = ROOT) -> str:
    """All files in the order of their paths, so that every checkout gives the same text."""
    found = [*root.glob("*.md"), *(path for name in FOLDERS for path in (root / name).rglob("*"))]
    relative = {path.relative_to(root).as_posix(): path for path in found if path.suffix in KINDS}
    return "\n".join(
        relative[name].read_text(encoding="utf-8")
        for name in sorted(relative)
        if not any(Path(name).is_relative_to(made) for made in WRITTEN_BY_THE_BENCH)
    )


class Text:
    """Characters as numbers: the beginning is for training, the end for validation."""

    def __init__(self, characters: str) -> None:
        codes = torch.frombuffer(bytearray(characters.encode("utf-32-le")), dtype=torch.int32)
        vocabulary, numbers = codes.unique(return_inverse=True)
        cut = round(len(numbers) * (1 - VALIDATION_SHARE))
        self.vocabulary = len(vocabulary)
        self.train, self.validation = numbers[:cut], numbers[cut:]
        self.facts = {
            "characters": len(characters),
            "vocabulary": len(vocabulary),
            "sha256": hashlib.sha256(characters.encode()).hexdigest(),
        }


def windows(numbers: Tensor, starts: Tensor, length: int) -> Tensor:
    """A row of `length` numbers from each start."""
    return numbers[starts[:, None] + torch.arange(length)]
