"""A small GPT over bytes, and its text: what the scripts beside this file train."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAGES = Path(__file__).parents[1]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k, v = (heads.transpose(-2, -3) for heads in (q, k, v))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(-2, -3).flatten(-2))
        return x + self.mlp(self.norm2(x))


class TinyGPT(nn.Module):
    """forward(tokens, targets) is the mean cross entropy of the next byte."""

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4, length: int = 128):
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[-1], device=tokens.device)
        x = self.embedding(tokens) + self.position(places)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x)).float()
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def read_bytes(path: Path | None = None) -> Tensor:
    """The bytes of a file; by default those of these pages."""
    files = [path] if path else sorted(PAGES.glob("*.md"))
    return torch.tensor([*b"".join(file.read_bytes() for file in files)])


def batch_of(text: Tensor, step: int, rows: int, length: int, rank: int = 0) -> tuple[Tensor, ...]:
    """Tokens and targets of a step. They depend on step and rank alone, so a run that is resumed
    sees what it would have seen."""
    if len(text) <= length:
        raise SystemExit(f"--text has {len(text)} bytes: give a longer file, or a shorter --length")
    generator = torch.Generator().manual_seed(1_000_003 * rank + step)
    starts = torch.randint(len(text) - length, (rows, 1), generator=generator)
    windows = text[starts + torch.arange(length + 1)]
    return windows[:, :-1], windows[:, 1:]


def add_sizes(parser: argparse.ArgumentParser, rows: int = 16) -> None:
    """The sizes of the model and of a batch, for a command line."""
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=rows, help="sequences in a batch")
    parser.add_argument("--length", type=int, default=128, help="bytes in a sequence")
    parser.add_argument("--lr", type=float, default=1e-3)
