"""The parameter lists that are raced, and the bytes that a step over one must at least move."""

from dataclasses import dataclass

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

# Reads and writes of one element in a step that touches memory as seldom as the rule allows, as
# (matrix, vector). AdamW reads p g m v and writes p m v. Adafactor reads g twice, since the update
# needs the sums, and reads and writes p; the second read of g is left out because it can come from
# cache, and so can the row and column factors. Adafactor's vectors keep a full v, read and written.
FLOOR_ACCESSES = {"adamw": (7, 7), "adafactor": (3, 5)}
# How many tensors of a parameter's size there are: p g m v, or p g, or p g v.
HELD = {"adamw": (4, 4), "adafactor": (2, 3)}

MEBI = 1 << 20


@dataclass(frozen=True)
class ParameterList:
    name: str
    shapes: tuple[tuple[int, ...], ...]
    families: tuple[str, ...] = ("adamw", "adafactor")
    host_bound: bool = False
    dtypes: tuple[str, ...] | None = None  # all that fit; None: any
    rules: tuple[str, ...] | None = None  # None: all of its families

    def is_raced(self, rule: str, family: str) -> bool:
        return family in self.families and (self.rules is None or rule in self.rules)

    @property
    def elements(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    def floor_bytes(self, family: str, dtype: torch.dtype) -> int:
        return self._bytes(FLOOR_ACCESSES[family], dtype)

    def held_bytes(self, family: str, dtype: torch.dtype) -> int:
        return self._bytes(HELD[family], dtype)

    def _bytes(self, of_an_element: tuple[int, int], dtype: torch.dtype) -> int:
        matrix, vector = of_an_element
        accesses = sum(
            torch.Size(shape).numel() * (matrix if len(shape) > 1 else vector)
            for shape in self.shapes
        )
        return accesses * dtype.itemsize

    def tensors(
        self, dtype: torch.dtype, device: str = "cpu"
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Parameter and gradient values, the same ones at every call."""
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

# T5 v1.1 XL: embedding and head, the relative biases of encoder and decoder; in each layer q, k, v,
# o (in a decoder's twice), two projections up and one down, a norm before each of these parts.
T5_ATTENTION = ((2048, 2048),) * 4 + ((2048,),)
T5_FEED_FORWARD = ((5120, 2048), (5120, 2048), (2048, 5120), (2048,))
T5_XL = (
    *((32128, 2048), (32128, 2048), (32, 32), (32, 32)),
    *(24 * (T5_ATTENTION + T5_FEED_FORWARD)),
    *(24 * (2 * T5_ATTENTION + T5_FEED_FORWARD)),
    *((2048,), (2048,)),
)

# Llama 2 7B: in each layer q, k, v, o, gate, up, down and two norms. Of its 32 layers as many as a
# machine with 24 GiB has room for, four times over.
LLAMA_7B_LAYER = (
    *((4096, 4096),) * 4,
    *((11008, 4096), (11008, 4096), (4096, 11008), (4096,), (4096,)),
)

# T5 small: as T5 XL, without gates and with one embedding.
T5_SMALL_ATTENTION = ((512, 512),) * 4 + ((512,),)
T5_SMALL_FEED_FORWARD = ((2048, 512), (512, 2048), (512,))
T5_SMALL = (
    *((32128, 512), (32, 8), (32, 8)),
    *(6 * (T5_SMALL_ATTENTION + T5_SMALL_FEED_FORWARD)),
    *(6 * (2 * T5_SMALL_ATTENTION + T5_SMALL_FEED_FORWARD)),
    *((512,), (512,)),
)

# GPT-2, the small one: two embeddings; in each layer the attention, the feed-forward and two norms,
# all of them with biases.
GPT2_LAYER = (
    *((768, 2304), (2304,), (768, 768), (768,), (768, 3072), (3072,), (3072, 768), (768,)),
    *((768,),) * 4,
)
GPT2 = ((50257, 768), (1024, 768), *(12 * GPT2_LAYER), (768,), (768,))

# ViT-B/16: patches, class token, positions; in each layer as GPT-2; the head.
VIT_LAYER = (
    *((2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), (768,)),
    *((768,),) * 4,
)
VIT = (
    *((768, 3, 16, 16), (768,), (1, 1, 768), (1, 197, 768)),
    *(12 * VIT_LAYER),
    *((768,), (768,), (1000, 768), (1000,)),
)

EXPERTS = ((512, 128, 256), (512, 256, 128), (512, 256))

EVERYDAY = ("adamw", "adafactor-hf-trainer")

LISTS = {
    entry.name: entry
    for entry in (
        ParameterList("10x8M", ((8 * MEBI,),) * 10, families=("adamw",)),
        ParameterList("68M", ((2048, 2048),) * 8 + ((2048, 5632),) * 3),
        ParameterList("small", ((64, 64),) * 600 + ((64,),) * 600),
        ParameterList("tiny", ((1024,),) * 1200, families=("adamw",)),
        ParameterList("host", ((1,),) * 1200, host_bound=True),
        # Models, as they are trained.
        ParameterList("t5-small", T5_SMALL, rules=EVERYDAY),
        ParameterList("gpt2", GPT2, rules=EVERYDAY),
        ParameterList("vit-b", VIT, rules=EVERYDAY),
        ParameterList("llama-7b, 1 layer", LLAMA_7B_LAYER, rules=EVERYDAY),
        # A layer of 512 experts, each of its matrices one parameter, and the router.
        ParameterList("512 experts", EXPERTS, rules=EVERYDAY),
        # Rank 8 beside 1,000 matrices of width 512.
        ParameterList("lora", ((8, 512), (512, 8)) * 1000, rules=EVERYDAY),
        # For GPUs.
        ParameterList("1e9", ((100_000_000,),) * 10, families=("adamw",)),
        ParameterList("llama-1b", LLAMA_1B),
        # In float32 five providers of it would not fit into 141 GB.
        ParameterList("t5-xl", T5_XL, families=("adafactor",), dtypes=("bfloat16",)),
        # One matrix whose gradient fits the L2 cache of an H200, and two that are far larger: one
        # of rows that a block holds, one of longer rows.
        ParameterList("4096x4096", ((4096, 4096),), ("adafactor",), dtypes=("bfloat16",)),
        ParameterList("32768x8192", ((32768, 8192),), ("adafactor",), dtypes=("bfloat16",)),
        ParameterList("16384x16384", ((16384, 16384),), ("adafactor",), dtypes=("bfloat16",)),
        ParameterList("2000 small", ((1024,),) * 2000, families=("adamw",)),
    )
}


def parameters(values: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.nn.Parameter]:
    """A provider's own copy of the values; the gradients stay in place between steps."""
    copies = []
    for value, gradient in values:
        parameter = torch.nn.Parameter(value.clone())
        parameter.grad = gradient.clone()
        copies.append(parameter)
    return copies
