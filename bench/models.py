"""The two models that we train: a small GPT and a small T5, in plain torch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 32
REACH = 32  # T5's relative positions: a larger distance counts as this one


class Attention(nn.Module):
    """Attention of `x` to `memory`, or to `x` itself. T5 does not divide by the root of a head's
    width; its initial weights are smaller instead."""

    def __init__(self, width: int, scale: float | None, bias: bool) -> None:
        super().__init__()
        self.scale = scale
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=bias) for _ in range(4)
        )

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        positions: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        source = x if memory is None else memory

        def heads(values: Tensor) -> Tensor:
            return values.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)

        seen = F.scaled_dot_product_attention(
            heads(self.query(x)),
            heads(self.key(source)),
            heads(self.value(source)),
            attn_mask=positions,
            is_causal=causal,
            scale=self.scale,
        )
        return self.out(seen.transpose(1, 2).flatten(2))


class GptBlock(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, scale=None, bias=True)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), causal=True))
        return x + self.dropout(self.feed(self.feed_norm(x)))


class Gpt(nn.Module):
    """Predicts each character from those before it. It learns positions, and its head is tied."""

    def __init__(
        self, vocabulary: int, context: int, width: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.context = context
        self.characters, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(GptBlock(width, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                last_of_its_block = name.endswith(("attention.out.weight", "feed.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) ** last_of_its_block)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def window(self) -> int:
        """How many characters in a row one loss needs."""
        return self.context + 1

    def forward(self, window: Tensor) -> Tensor:
        """The mean loss of the window's characters, without the first one."""
        read, expected = window[:, :-1], window[:, 1:]
        places = torch.arange(self.context, device=window.device)
        x = self.norm(self.blocks(self.characters(read) + self.places(places)))
        return loss(F.linear(x, self.characters.weight), expected)


class RelativePositions(nn.Module):
    """T5's addition to attention: a number for each distance and head."""

    def __init__(self, heads: int, causal: bool) -> None:
        super().__init__()
        self.table, self.causal = nn.Embedding(2 * REACH + 1, heads), causal

    def forward(self, length: int) -> Tensor:
        places = torch.arange(length, device=self.table.weight.device)
        distance = places - places[:, None]
        added = self.table(distance.clamp(-REACH, REACH) + REACH).permute(2, 0, 1)[None]
        return added.masked_fill(distance > 0, -math.inf) if self.causal else added


class T5Block(nn.Module):
    def __init__(self, width: int, dropout: float, decodes: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2 + decodes))
        self.attention = Attention(width, scale=1.0, bias=False)
        self.cross = Attention(width, scale=1.0, bias=False) if decodes else None
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False),
            nn.ReLU(),
            nn.Linear(4 * width, width, bias=False),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, memory: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norms[0](x), positions=positions))
        if self.cross is not None:
            x = x + self.dropout(self.cross(self.norms[1](x), memory=memory))
        return x + self.dropout(self.feed(self.norms[-1](x)))


class T5(nn.Module):
    """Reads `context` characters and predicts the next `context`. Characters and head share a
    matrix, as in T5 1.0. Distances stop at REACH; T5 puts them into logarithmic buckets."""

    def __init__(
        self, vocabulary: int, context: int, width: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.context = context
        heads = width // HEAD_WIDTH
        self.characters = nn.Embedding(vocabulary, width)
        self.encoder, self.decoder = (
            nn.ModuleList(T5Block(width, dropout, decodes) for _ in range(layers))
            for decodes in (False, True)
        )
        self.encoder_positions = RelativePositions(heads, causal=False)
        self.decoder_positions = RelativePositions(heads, causal=True)
        self.encoder_norm, self.decoder_norm = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        for name, parameter in self.named_parameters():
            if name == "characters.weight":
                nn.init.normal_(parameter)
            elif parameter.dim() == 2:
                spread = parameter.shape[1]
                if name.endswith("query.weight"):
                    spread *= HEAD_WIDTH
                nn.init.normal_(parameter, std=spread**-0.5)

    @property
    def window(self) -> int:
        """How many characters in a row one loss needs."""
        return 2 * self.context

    def forward(self, window: Tensor) -> Tensor:
        """The mean loss of the window's second half. The decoder starts with the last character of
        the first half."""
        memory = self.characters(window[:, : self.context])
        positions = self.encoder_positions(self.context)
        for block in self.encoder:
            memory = block(memory, positions)
        memory = self.encoder_norm(memory)
        x = self.characters(window[:, self.context - 1 : -1])
        positions = self.decoder_positions(self.context)
        for block in self.decoder:
            x = block(x, positions, memory)
        x = self.decoder_norm(x) * x.shape[-1] ** -0.5
        return loss(F.linear(x, self.characters.weight), window[:, self.context :])


def loss(logits: Tensor, expected: Tensor) -> Tensor:
    """Computed in float32 at least, whatever the parameters are."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(exact.flatten(0, 1), expected.flatten())


MODELS: dict[str, Callable[..., Gpt | T5]] = {"gpt": Gpt, "t5": T5}
