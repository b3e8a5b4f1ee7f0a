"""The parameter lists that we race, and the fewest bytes that a step over one must move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fusedstep.rules import Rule

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
MEBI = 1 << 20


def rule_of(name: str) -> Rule:
    """A rule of the package. We import it late, because `bench.gpu` starts before it is built."""
    from fusedstep.rules import RULES

    return RULES[name]


def accesses(rule: Rule) -> tuple[int, int]:
    """The fewest reads and writes of one element in a step: (of a matrix, of a vector).

    A step reads g, and it reads and writes p and every state. A factored rule reads the gradient of
    a matrix twice, because the update needs the sums. We do not count the second read, because it
    can come from cache, nor the row and column factors, which are small. For a vector such a rule
    keeps a full second moment, which it reads and writes.
    """
    matrix = 3 + 2 * len(rule.states)
    return matrix, matrix + 2 * rule.factored


def tensors_held(rule: Rule) -> tuple[int, int]:
    """How many tensors have the parameter's size, for (a matrix, a vector): p, g and the states."""
    matrix = 2 + len(rule.states)
    return matrix, matrix + rule.factored


@dataclass(frozen=True)
class ParameterList:
    name: str
    shapes: tuple[tuple[int, ...], ...]
    label: str = ""  # in README; by default the name
    host_bound: bool = False  # it shows the host's time only
    is_model: bool = False  # only optimizers that are `on_models` race on it
    for_factored: bool = False  # only factored rules race on it
    for_products: bool = False  # only optimizers that multiply matrices race on it
    dtypes: tuple[str, ...] | None = None  # those that fit into memory; None: any

    @property
    def has_matrices(self) -> bool:
        return any(len(shape) > 1 for shape in self.shapes)

    @property
    def elements(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    def floor_bytes(self, rule: str, dtype: torch.dtype) -> int:
        """The fewest bytes that a step by this rule of the package must move."""
        return self._bytes(accesses(rule_of(rule)), dtype)

    def held_bytes(self, rule: str, dtype: torch.dtype) -> int:
        """The bytes of parameters, gradients and states, if all of them have this dtype."""
        return self._bytes(tensors_held(rule_of(rule)), dtype)

    def _bytes(self, of_an_element: tuple[int, int], dtype: torch.dtype) -> int:
        matrix, vector = of_an_element
        count = sum(
            torch.Size(shape).numel() * (matrix if len(shape) > 1 else vector)
            for shape in self.shapes
        )
        return count * dtype.itemsize

    def tensors(
        self, dtype: torch.dtype, device: str = "cpu"
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Values of parameters and gradients, the same ones at every call."""
        noise = torch.Generator(device).manual_seed(0)

        def random(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.randn(shape, generator=noise, dtype=dtype, device=device)

        return [(random(shape), random(shape).mul_(1e-2)) for shape in self.shapes]


# Llama 3.2 1B, the embedding tied: in each layer q, k, v, o, gate, up, down and two norms.
LLAMA_LAYER = (
    *((2048, 2048), (512, 2048), (512, 2048), (2048, 2048)),
    *((8192, 2048), (8192, 2048), (2048, 8192), (2048,), (2048,)),
)
LLAMA_1B = ((128256, 2048), *(16 * LLAMA_LAYER), (2048,))

# Llama 3 70B, for predictions only: it has a head of its own.
LLAMA_70B_LAYER = (
    *((8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192)),
    *((28672, 8192), (28672, 8192), (8192, 28672), (8192,), (8192,)),
)
LLAMA_70B = ((128256, 8192), (128256, 8192), *(80 * LLAMA_70B_LAYER), (8192,))

# T5 v1.1 XL: embedding and head, the relative biases of encoder and decoder; in each layer q, k, v,
# o (twice in the decoder), two projections up and one down, and a norm before each of these parts.
T5_ATTENTION = ((2048, 2048),) * 4 + ((2048,),)
T5_FEED_FORWARD = ((5120, 2048), (5120, 2048), (2048, 5120), (2048,))
T5_XL = (
    *((32128, 2048), (32128, 2048), (32, 32), (32, 32)),
    *(24 * (T5_ATTENTION + T5_FEED_FORWARD)),
    *(24 * (2 * T5_ATTENTION + T5_FEED_FORWARD)),
    *((2048,), (2048,)),
)

# Llama 2 7B: in each layer q, k, v, o, gate, up, down and two norms. One of its 32 layers, so that
# several providers fit into 24 GiB.
LLAMA_7B_LAYER = (
    *((4096, 4096),) * 4,
    *((11008, 4096), (11008, 4096), (4096, 11008), (4096,), (4096,)),
)

# T5 small: like T5 XL, without gates and with one embedding.
T5_SMALL_ATTENTION = ((512, 512),) * 4 + ((512,),)
T5_SMALL_FEED_FORWARD = ((2048, 512), (512, 2048), (512,))
T5_SMALL = (
    *((32128, 512), (32, 8), (32, 8)),
    *(6 * (T5_SMALL_ATTENTION + T5_SMALL_FEED_FORWARD)),
    *(6 * (2 * T5_SMALL_ATTENTION + T5_SMALL_FEED_FORWARD)),
    *((512,), (512,)),
)

# GPT-2 small: two embeddings; in each layer attention, feed-forward and two norms, all with biases.
GPT2_LAYER = (
    *((768, 2304), (2304,), (768, 768), (768,), (768, 3072), (3072,), (3072, 768), (768,)),
    *((768,),) * 4,
)
GPT2 = ((50257, 768), (1024, 768), *(12 * GPT2_LAYER), (768,), (768,))

# ViT-B/16: patches, class token, positions; layers like GPT-2's; the head.
VIT_LAYER = (
    *((2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), (768,)),
    *((768,),) * 4,
)
VIT = (
    *((768, 3, 16, 16), (768,), (1, 1, 768), (1, 197, 768)),
    *(12 * VIT_LAYER),
    *((768,), (768,), (1000, 768), (1000,)),
)

# A layer of 512 experts, where each matrix of all experts is one parameter, and the router.
EXPERTS = ((512, 128, 256), (512, 256, 128), (512, 256))

LISTS = {
    entry.name: entry
    for entry in (
        ParameterList("10x8M", ((8 * MEBI,),) * 10, label="10 x 8M"),
        ParameterList("68M", ((2048, 2048),) * 8 + ((2048, 5632),) * 3, label="68M in 11 matrices"),
        ParameterList(
            "small", ((64, 64),) * 600 + ((64,),) * 600, label="600 x (64, 64) + 600 x (64,)"
        ),
        ParameterList("tiny", ((1024,),) * 1200, label="1200 x 1K"),
        ParameterList("host", ((1,),) * 1200, label="1200 x 1", host_bound=True),
        # Few, large and many matrices, for Muon.
        ParameterList("8 matrices", ((512, 512),) * 8, label="8 x (512, 512)", for_products=True),
        ParameterList(
            "32 matrices",
            ((2048, 2048),) * 32,
            label="32 x (2048, 2048)",
            for_products=True,
            dtypes=("bfloat16",),
        ),
        ParameterList(
            "64 matrices", ((128, 128),) * 64, label="64 x (128, 128)", for_products=True
        ),
        # Whole models, and what is trained beside them.
        ParameterList("t5-small", T5_SMALL, is_model=True),
        ParameterList("gpt2", GPT2, is_model=True),
        ParameterList("vit-b", VIT, is_model=True),
        ParameterList("llama-7b, 1 layer", LLAMA_7B_LAYER, is_model=True),
        ParameterList("512 experts", EXPERTS, is_model=True),
        # Rank 8 beside 1,000 matrices of width 512.
        ParameterList("lora", ((8, 512), (512, 8)) * 1000, is_model=True),
        # For GPUs.
        ParameterList("1e9", ((100_000_000,),) * 10),
        ParameterList("llama-1b", LLAMA_1B),
        # Five providers of it in float32 would not fit into 141 GB.
        ParameterList("t5-xl", T5_XL, for_factored=True, dtypes=("bfloat16",)),
        # One matrix whose gradient fits the L2 cache of an H200, and two that are far larger: rows
        # that one block holds, and longer rows.
        ParameterList("4096x4096", ((4096, 4096),), for_factored=True, dtypes=("bfloat16",)),
        ParameterList("32768x8192", ((32768, 8192),), for_factored=True, dtypes=("bfloat16",)),
        ParameterList("16384x16384", ((16384, 16384),), for_factored=True, dtypes=("bfloat16",)),
        ParameterList("2000 small", ((1024,),) * 2000),
    )
}


def parameters(values: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.nn.Parameter]:
    """A copy of the values for one provider. Its gradients stay in place between steps."""
    copies = []
    for value, gradient in values:
        parameter = torch.nn.Parameter(value.clone())
        parameter.grad = gradient.clone()
        copies.append(parameter)
    return copies
