"""What an H200 should measure, by bytes and launches: writes bench/results/predicted-h200.md.

A prediction is the largest of three times: the bytes that a step moves over the speed of a copy,
its launches, and the host's work; what the host waits for comes on top. Arithmetic is free.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from fusedstep.kernels import cut, waves

from bench.lists import DTYPES, LISTS, ParameterList

PAGE = Path(__file__).parent / "results" / "predicted-h200.md"

# Assumptions. None was measured on the device.
PEAK = 4.8e12  # bytes a second of an H200's memory, by its data sheet
COPY_SHARE = 0.9  # of the peak, reached by a large copy: to be measured
COPY = PEAK * COPY_SHARE
GAP = 4e-6  # seconds from a kernel's start to the next one's, where both do nothing
TRITON_LAUNCH = 15e-6  # seconds of the host for one launch of ours
TORCH_LAUNCH = 5e-6  # and for one of torch's, with its operator
WAIT = 20e-6  # seconds lost each time the host reads a number from the device
L2 = 50e6  # bytes of cache
# Seconds of the host for a parameter of an AdamW step, measured on a CPU (AMD EPYC, 2026-11-21,
# bench/results): a list of single elements.
OURS_EACH, FUSED_EACH, FOREACH_EACH = 0.38e-6, 3.09e-6, 11.16e-6
FUSED_TENSORS = 36  # in one launch of torch's fused AdamW: four lists of addresses in one argument
LARGE = ("1e9", "llama-1b")
TRAINER, DEFAULTS, TORCH = "adafactor-hf-trainer", "adafactor-hf-defaults", "adafactor-torch"
# Kinds of work that find nothing to do, so that they are not launched.
IDLE = {TRAINER: {"ENERGY", "SQUARES"}, DEFAULTS: {"ENERGY", "REPORT"}, TORCH: {"REPORT"}}

# What a peer's step moves for an element of a matrix: its passes over memory, counted in torch
# 2.13's and transformers 5.23's source. An estimate: caches are left out, and reductions across
# rows are slower than copies.
#   torch foreach AdamW, accesses: p *= (2), m lerp (3), v *= (2), v addcmul (3), sqrt (2), / (2),
#   + eps (2), addcdiv (4)
FOREACH_ADAMW_ACCESSES = 20
#   torch foreach Adafactor, accesses: norm p (1), norms of g (1, 1), row @ col (1), / (2),
#   clamp (2), rsqrt (2), * g (3), norm u (1), * alpha (2), p += (3)
FOREACH_ADAFACTOR_ACCESSES = 19
#   transformers, float32 temporaries: norm p (4), g^2 (8), + eps (8), two means (8), row * col (4),
#   * g (12), norm u (4), / (8), * lr (8), -u (8), p += (12); in bfloat16 also the casts of g (6),
#   of p (6), and back (6)
TRANSFORMERS_BYTES = {"float32": 84, "bfloat16": 84 + 18}
# Launches for a matrix, counted likewise; for torch those that are not for all tensors at once.
TRANSFORMERS_LAUNCHES, FOREACH_LAUNCHES, FOREACH_WAITS = 28, 9, 2
COUNTED = "passes counted in its source"


@dataclass(frozen=True)
class Prediction:
    rule: str
    chosen: ParameterList
    dtype: str
    provider: str
    moved: float  # bytes
    launches: int
    host: float  # seconds
    remark: str = ""
    waits: int = 0  # numbers that the host reads back

    @property
    def family(self) -> str:
        return self.rule.split("-")[0]

    @property
    def floor_bytes(self) -> int:
        return self.chosen.floor_bytes(self.family, DTYPES[self.dtype])

    @property
    def in_cache(self) -> bool:
        return self.chosen.held_bytes(self.family, DTYPES[self.dtype]) <= L2

    @property
    def seconds(self) -> float:
        # What lies in L2 moves no bytes of memory: then only launches and the host count.
        moving = 0.0 if self.in_cache else self.moved / COPY
        return max(moving, GAP * self.launches, self.host) + WAIT * self.waits

    @property
    def share(self) -> float:
        """Of the floor at copy speed."""
        return self.floor_bytes / COPY / self.seconds


def elements(shapes: list[tuple[int, ...]]) -> int:
    return sum(ParameterList("", (shape,)).elements for shape in shapes)


def adamw(name: str, dtype: str) -> list[Prediction]:
    chosen, count = LISTS[name], len(LISTS[name].shapes)
    size = DTYPES[dtype].itemsize
    floor = chosen.floor_bytes("adamw", DTYPES[dtype])
    foreach = FOREACH_ADAMW_ACCESSES * size * chosen.elements
    # torch cuts work of one launch at 36 tensors, or at 320 chunks of 65,536 elements.
    chunks = sum(cut.ceil_div(elements([shape]), 65536) for shape in chosen.shapes)
    fused = max(cut.ceil_div(count, FUSED_TENSORS), cut.ceil_div(chunks, 320))
    who = ("adamw", chosen, dtype)
    return [
        Prediction(*who, "fusedstep", floor, 1, TRITON_LAUNCH + OURS_EACH * count),
        Prediction(*who, "torch-fused", floor, fused, FUSED_EACH * count),
        Prediction(*who, "torch-foreach", foreach, 8 * fused, FOREACH_EACH * count, COUNTED),
    ]


def our_adafactor(rule: str, chosen: ParameterList, dtype: str, in_waves: bool) -> Prediction:
    """g twice, p read and written; with scale_parameter p once more; sums down the columns of each
    256 rows or so, written and read. In waves, which are off by default, the second read of a
    gradient that fits L2 comes from there, and so do its sums: at best."""
    item, layout, kinds = DTYPES[dtype].itemsize, cut.Layout(4), set()
    moved = launches = 0
    scaled = rule != TRAINER
    for shape in chosen.shapes:
        count = elements([shape])
        if len(shape) < 2:
            layout.add_vector(count)
            moved += count * (4 * item + 3 * 4)  # v is float32
        else:
            sizes = (count // (shape[-2] * shape[-1]), *shape[-2:])
            again = in_waves and waves.take(*sizes) and count * item <= L2
            moved += (4 + scaled - again) * item * count
            if in_waves and waves.take(*sizes):
                launches = 2  # the one kernel, and a zero for its counters
                continue
            layout.add_matrices(*sizes)
        kinds |= {(len(shape) > 1, kind) for kind in layout.work[-1]}
    launches += sum(kind.name not in IDLE[rule] for _, kind in kinds)
    moved += 2 * 4 * layout.partials
    host = TRITON_LAUNCH * launches + OURS_EACH * len(chosen.shapes)
    remark = "in waves, at best" if in_waves else "in phases"
    return Prediction(rule, chosen, dtype, "fusedstep", moved, launches, host, remark)


def adafactor(name: str, dtype: str) -> list[Prediction]:
    chosen = LISTS[name]
    count = len(chosen.shapes)
    moved = TRANSFORMERS_BYTES[dtype] * chosen.elements
    launches = TRANSFORMERS_LAUNCHES * count
    found = []
    for rule in (TRAINER, DEFAULTS):
        host, waits = TORCH_LAUNCH * launches, count if rule == DEFAULTS else 0
        found += [our_adafactor(rule, chosen, dtype, in_waves) for in_waves in (False, True)]
        who = (rule, chosen, dtype, "transformers")
        found.append(Prediction(*who, moved, launches, host, COUNTED, waits))
    foreach = FOREACH_ADAFACTOR_ACCESSES * DTYPES[dtype].itemsize * chosen.elements
    launches = FOREACH_LAUNCHES * count
    host, waits = TORCH_LAUNCH * launches, FOREACH_WAITS * count
    who = (TORCH, chosen, dtype)
    return [
        *found,
        *(our_adafactor(TORCH, chosen, dtype, in_waves) for in_waves in (False, True)),
        Prediction(*who, "torch-foreach", foreach, launches, host, COUNTED, waits),
    ]


def predictions() -> list[Prediction]:
    both = ("float32", "bfloat16")
    found = [row for name in LARGE for dtype in both for row in adamw(name, dtype)]
    found += [row for dtype in both for row in adafactor("llama-1b", dtype)]
    return found + adamw("2000 small", "float32")


def page(rows: list[Prediction]) -> str:
    heads = ("list", "dtype", "rule", "provider", "bytes an element", "GB", "launches", "host ms",
             "predicted ms", "of floor", "ratio", "measured ms", "note")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " :-- |" * 4 + " --: |" * 8 + " :-- |"]
    ours = rows[0]
    for row in rows:
        race = (row.rule, row.chosen.name, row.dtype)
        if (ours.rule, ours.chosen.name, ours.dtype) != race:
            ours = row
        note = "; ".join(filter(None, (row.remark, "in L2" if row.in_cache else "")))
        cells = (
            *(row.chosen.name, row.dtype, row.rule, row.provider),
            *(f"{row.moved / row.chosen.elements:.2f}", f"{row.moved / 1e9:.2f}"),
            *(str(row.launches), f"{row.host * 1e3:.2f}", f"{row.seconds * 1e3:.3f}"),
            *(f"{row.share:.0%}", f"{row.seconds / ours.seconds:.2f}", "", note),
        )
        lines.append("| " + " | ".join(cells) + " |")
    reached = "\n".join(f"| {what} | {found} | |" for what, found in targets(rows))
    assumed = {
        **{"peak": PEAK / 1e12, "share": COPY_SHARE, "copy": COPY / 1e12, "l2": L2 / 1e6},
        **{"gap": GAP * 1e6, "triton": TRITON_LAUNCH * 1e6, "torch": TORCH_LAUNCH * 1e6},
        **{"wait": WAIT * 1e6, "ours": OURS_EACH * 1e6, "fused": FUSED_EACH * 1e6},
        "foreach": FOREACH_EACH * 1e6,
    }
    return TEXT.format(table="\n".join(lines), targets=reached, **assumed)


TEXT = """\
# What an H200 should measure

No accelerator was there when this was written: every number below is arithmetic, by
`python -m bench.predict`, and the column "measured ms" is empty until `make gpu` has run.

Assumed: {peak} TB/s of memory by the data sheet, of which a large copy reaches {share:.0%}
({copy:.2f} TB/s, to be measured); {gap:.0f} us between the starts of two kernels; {triton:.0f} us
of the host for a launch of Triton's and {torch:.0f} us for one of torch's; {wait:.0f} us for each
number that the host reads back; {l2:.0f} MB of L2. Of the host, {ours:.2f} us for a parameter in
ours, {fused:.2f} us in torch's fused AdamW and {foreach:.2f} us in its foreach one, all measured on
a CPU with tensors of one element. A step takes the largest of memory, launches and host, and then
the waits. What the peers move is an estimate from their source (bench/predict.py lists the passes);
reductions across rows are taken to be as fast as copies, which favours them. Ours, in phases, reads
a gradient twice from memory; in waves (FUSEDSTEP_TRITON_WAVES=1), the second read of one that fits
L2 comes from there, at best.

{table}

bytes an element: moved by this provider. of floor: the fewest bytes that the rule must move
(bench/lists.py) at copy speed, over the predicted time. ratio: to fusedstep's first line of the
race; above 1 is slower.

## Targets

| target | predicted | measured |
| :-- | :-- | :-- |
{targets}
"""


def targets(rows: list[Prediction]) -> list[tuple[str, str]]:
    """What the work is held to, and what the numbers above say about it."""

    def seconds(rule: str, name: str, dtype: str, provider: str) -> float:
        return next(
            row.seconds
            for row in rows
            if (row.rule, row.chosen.name, row.dtype, row.provider) == (rule, name, dtype, provider)
        )

    def ratio(rule: str, name: str, dtype: str, peer: str) -> float:
        return seconds(rule, name, dtype, peer) / seconds(rule, name, dtype, "fusedstep")

    def share(rule: str, name: str, dtype: str) -> str:
        found = [r for r in rows if (r.rule, r.chosen.name, r.dtype) == (rule, name, dtype)]
        return ", ".join(f"{r.share:.2f} {r.remark}" for r in found if r.provider == "fusedstep")

    llama = ("llama-1b", "bfloat16")
    worst = min(row.share for row in rows if row.rule == "adamw" and row.provider == "fusedstep"
                and row.chosen.name in LARGE)  # fmt: skip
    fused = min(ratio("adamw", name, dtype, "torch-fused")
                for name in LARGE for dtype in ("float32", "bfloat16"))  # fmt: skip
    return [
        ("AdamW: at least 0.90 of copy bandwidth",
         f"{worst:.2f}, if a kernel of seven streams is as fast as a copy of two"),
        ("AdamW: not slower than torch fused", f"{fused:.2f} x: the same bytes"),
        ("Adafactor bf16 on llama-1b: at least 10 x transformers",
         f"{ratio('adafactor-hf-trainer', *llama, 'transformers'):.1f} x (Trainer's settings), "
         f"{ratio('adafactor-hf-defaults', *llama, 'transformers'):.1f} x (defaults)"),
        ("Adafactor bf16 on llama-1b: at least 10 x torch foreach",
         f"{ratio('adafactor-torch', *llama, 'torch-foreach'):.1f} x by bytes and launches: met "
         "only if torch's reductions stay far below copy speed, as on a CPU (13 x there)"),
        ("Adafactor bf16 on llama-1b: at least 0.6 of the floor of 6 bytes an element",
         f"Trainer's settings {share('adafactor-hf-trainer', *llama)}; "
         f"defaults {share('adafactor-hf-defaults', *llama)}"),
        ("2,000 small tensors: at least 5 x torch fused",
         f"{ratio('adamw', '2000 small', 'float32', 'torch-fused'):.1f} x: the host's time"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.predict", description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help=f"default: {PAGE.name}")
    out = parser.parse_args().out
    out.write_text(page(predictions()))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
