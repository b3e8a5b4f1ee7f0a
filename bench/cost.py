"""`python -m bench.cost`: predicts what a sharded Adafactor exchanges on 8 to 4,096 GPUs, and how
long that takes. It writes bench/results/predicted-sharded.md and .png. Nothing is measured."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.lists import LLAMA_70B, ParameterList
from bench.plot import FLOOR_COLOR, OURS_COLOR, PEER_COLOR

RESULTS = Path(__file__).parent / "results"
GPUS = tuple(2**k for k in range(3, 13))
NUMBER = 8  # bytes of one number in our messages: float64
GRADIENT = 2  # bytes of one: bfloat16


@dataclass(frozen=True)
class Network:
    """Nodes of GPUs. Bytes a second are those that a GPU sends, at full speed."""

    node: int = 8
    # Data sheet of an H100: 900 GB/s by NVLink, both directions together.
    inside: float = 450e9
    # A network card of 400 Gb/s for each GPU.
    across: float = 50e9
    # Seconds of one hop and of each call: NCCL's own model of its trees, src/graph/tuning.cc,
    # protocol LL128.
    hop_inside: float = 1.2e-6
    hop_across: float = 8.5e-6
    call: float = 4.4e-6
    # An assumption: what the host needs to start a collective, with torch's part of it.
    host: float = 10e-6

    def speed(self, gpus: int) -> float:
        return self.inside if gpus <= self.node else self.across

    def latency(self, gpus: int) -> float:
        """Of an all-reduce of no bytes: through each node, and up and down a tree of nodes."""
        nodes = math.ceil(gpus / self.node)
        hops = (min(gpus, self.node) - 1) * self.hop_inside + math.log2(nodes) * self.hop_across
        return self.host + self.call + 2 * hops

    def all_reduce(self, size: float, gpus: int) -> float:
        """Every GPU sends each byte about twice. This is what a ring and trees reach at best."""
        return self.latency(gpus) + 2 * size * (gpus - 1) / gpus / self.speed(gpus)

    def all_gather(self, size: float, gpus: int) -> float:
        """`size`: bytes of all GPUs together. We take the latency of an all-reduce, which favours
        it: NCCL gathers in a ring."""
        return self.latency(gpus) + size * (gpus - 1) / gpus / self.speed(gpus)


def messages(shapes: Iterable[tuple[int, ...]], is_capped: bool) -> list[int]:
    """How many numbers are in each message of a step if rows are split, as FSDP2 splits them. A
    test compares it with the layout that processes agree on.

    A matrix: for each column the sum of g^2 and of g^2 / row, the sum of the row moments, sum p^2.
    A vector, and a batch of matrices that is split between matrices: sum p^2 and sum u^2. And a
    count of gradients for each. With a cap the second message has sum u^2 and a count for each
    matrix.
    """
    shapes = list(shapes)
    columns = [shape[-1] for shape in shapes if len(shape) == 2]
    first = sum(2 * size + 3 for size in columns) + 3 * (len(shapes) - len(columns))
    return [first, 2 * len(columns)] if is_capped and columns else [first]


@dataclass(frozen=True)
class Prediction:
    way: str
    gpus: int
    collectives: int
    bytes: float
    seconds: float


ONE = "one packed all-reduce (hf.Adafactor)"
TWO = "two packed all-reduces (optim.Adafactor)"
EACH = "one all-reduce a tensor"
GATHER = "gather of whole gradients, bf16"
WAYS = (ONE, TWO, EACH, GATHER)


def predict(way: str, gpus: int, chosen: ParameterList, network: Network) -> Prediction:
    if way == GATHER:
        size = GRADIENT * chosen.elements
        return Prediction(way, gpus, 1, size, network.all_gather(size, gpus))
    if way == EACH:
        lengths = [messages([shape], False)[0] for shape in chosen.shapes]
    else:
        lengths = messages(chosen.shapes, way == TWO)
    sizes = [NUMBER * length for length in lengths]
    seconds = sum(network.all_reduce(size, gpus) for size in sizes)
    return Prediction(way, gpus, len(sizes), sum(sizes), seconds)


CHOSEN = ParameterList("llama-70b", LLAMA_70B)
TOKENS = 8192  # a GPU and step
FLOPS = 400e12  # a second: 40 % of an H100's 989e12 in bfloat16 (data sheet)
COMPUTING = 6 * CHOSEN.elements * TOKENS / FLOPS

TEXT = """\
# Prediction: what a sharded Adafactor exchanges

`python -m bench.cost` computes every number here. **Nothing is measured**: no run of ours had more
than one GPU. [What was measured](../../docs/distributed.md#what-it-costs) are bytes, collectives
and times on 2 and 4 processes of one machine.

The model is Llama 3 70B: {elements:.1f}e9 parameters in {tensors} tensors, split by rows over all
GPUs (FSDP2 on one mesh dimension). With HSDP, read the number of GPUs as those that one replica is
split over.

| assumption | value | where it is from |
| :-- | --: | :-- |
| GPUs a node | {node} | H100 nodes |
| bandwidth inside a node | {inside:.0f} GB/s a GPU | data sheet of an H100: NVLink, one direction |
| bandwidth between nodes | {across:.0f} GB/s a GPU | a card of 400 Gb/s for each GPU |
| latency of a call | {call:.1f} us | NCCL, `src/graph/tuning.cc`, trees, LL128 |
| latency of a hop | {hop_inside:.1f} us inside, {hop_across:.1f} us between nodes | the same |
| the host starts a collective | {host:.0f} us | assumed |
| a step computes | {computing:.2f} s | 6 x parameters x {tokens:,} tokens at {flops:.0f} TFLOP/s |

All-reduce: 2 x bytes x (N - 1) / N / bandwidth + latency. All-gather: bytes x (N - 1) / N /
bandwidth + latency. Latency: host + call + 2 x ((GPUs a node - 1) x hop inside + log2(nodes) x hop
between). Links run at full speed, nobody else uses them, and nothing overlaps. "Of a step" is the
time over what a step computes.

{table}

![prediction](predicted-sharded.png)

Our message has about two numbers a column, however many GPUs there are, while the shard of a GPU
gets smaller. Beside the bytes of its bfloat16 parameters the message takes {share_few} on {few}
GPUs, and {share_many} on {many:,}. A GPU holds it twice: as sums, and packed. If that is too much
memory, split over fewer GPUs, with HSDP.
"""


def page(network: Network) -> str:
    lines = ["| GPUs | way | collectives | MB | ms | of a step |", "| --: | :-- |" + " --: |" * 4]
    for gpus in GPUS:
        for way in WAYS:
            row = predict(way, gpus, CHOSEN, network)
            lines.append(
                f"| {gpus:,} | {way} | {row.collectives} | {row.bytes / 1e6:,.1f} | "
                f"{row.seconds * 1e3:,.2f} | {row.seconds / COMPUTING:.3%} |"
            )

    def share(gpus: int) -> str:
        """Of the packed numbers, beside the bfloat16 parameters that a GPU holds."""
        held = 2 * CHOSEN.elements / gpus
        return f"{predict(ONE, gpus, CHOSEN, network).bytes / held:.0%}"

    few, many = 64, GPUS[-1]
    return TEXT.format(
        elements=CHOSEN.elements / 1e9,
        tensors=len(CHOSEN.shapes),
        node=network.node,
        inside=network.inside / 1e9,
        across=network.across / 1e9,
        call=network.call * 1e6,
        hop_inside=network.hop_inside * 1e6,
        hop_across=network.hop_across * 1e6,
        host=network.host * 1e6,
        computing=COMPUTING,
        tokens=TOKENS,
        flops=FLOPS / 1e12,
        table="\n".join(lines),
        **{"few": few, "many": many, "share_few": share(few), "share_many": share(many)},
    )


def draw(network: Network, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 5.0))
    panel = figure.subplots()
    styles = {ONE: (OURS_COLOR, "o-"), TWO: (OURS_COLOR, "s:")}
    markers = iter(("^-", "D-"))
    for way in WAYS:
        color, style = styles.get(way) or (PEER_COLOR, next(markers))
        times = [predict(way, gpus, CHOSEN, network).seconds * 1e3 for gpus in GPUS]
        panel.plot(GPUS, times, style, color=color, markersize=5, label=way)
    limit = COMPUTING * 1e3 / 100
    panel.axhline(limit, color=FLOOR_COLOR, linestyle="--", linewidth=1.2)
    panel.annotate("1 % of what a step computes", (GPUS[0], limit * 1.1), fontsize=8)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(GPUS, [f"{gpus:,}" for gpus in GPUS])
    panel.set_xlabel("GPUs that share each parameter, by rows")
    panel.set_ylabel("ms of communication a step")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, frameon=False)
    panel.set_title(
        f"Prediction, not measured: what Adafactor exchanges for {CHOSEN.name}\n"
        f"{network.across / 1e9:.0f} GB/s a GPU between nodes, {network.inside / 1e9:.0f} GB/s "
        f"inside; latencies of NCCL's own model",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(folder: Path = RESULTS) -> int:
    network = Network()
    (folder / "predicted-sharded.md").write_text(page(network))
    try:
        draw(network, folder / "predicted-sharded.png")
    except ImportError:
        print("matplotlib is not installed: no picture", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
