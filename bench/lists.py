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

LISTS = {
    entry.name: entry
    for entry in (
        ParameterList("10x8M", ((8 * MEBI,),) * 10, families=("adamw",)),
        ParameterList("68M", ((2048, 2048),) * 8 + ((2048, 5632),) * 3),
        ParameterList("small", ((64, 64),) * 600 + ((64,),) * 600),
        ParameterList("tiny", ((1024,),) * 1200, families=("adamw",)),
        ParameterList("host", ((1,),) * 1200, host_bound=True),
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
