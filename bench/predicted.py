"""Writes bench/results/predicted-h200.md: the predictions, and the targets beside them."""

import argparse
from pathlib import Path

from bench import one_pass, predict, readme
from bench.predict import DEFAULTS, LAUNCH, TORCH, TRAINER, Prediction
from bench.providers import OURS, OURS_TRITON

PAGE = Path(__file__).parent / "results" / "predicted-h200.md"
HEADS = ("list", "dtype", "rule", "provider", "bytes an element", "GB", "launches", "host ms",
         "predicted ms", "of floor", "ratio", "measured ms", "note")  # fmt: skip

TEXT = """\
# What an H200 should measure

`python -m bench.predicted` computes every number below, except the column "measured ms",
{measured}
`fusedstep` is the CUDA backend, `fusedstep-triton` is Triton's.

A large copy moves {copy:.2f} TB/s on an H200 (measured), which has {l2:.0f} MB of L2. We assume
{gap:.0f} us between the starts of two kernels. A launch costs the host {cuda:.0f} us from C++,
{triton:.0f} us from Triton, and {torch:.0f} us from torch, with its operator. Triton's scalars of a
bucket cost it {upload:.0f} us, and each number that it reads back {wait:.0f} us.

We measured the host's work on a CPU; that of the H200 takes {host} times as long, as torch's fused
AdamW showed. There, for each parameter, as a tensor of one element, ours takes {ours:.2f} us,
torch's fused AdamW {fused:.2f} us and its foreach AdamW {foreach:.2f} us. A step of ours whose
launches are only recorded takes {adamw:.0f} us (AdamW) and {adafactor:.0f} us (Adafactor). Small
lists were measured before the host's part became as short as it is now.

We counted instructions in machine code for sm_90. For each element, Adafactor's first read takes
{bf16} in bfloat16 and {fp32} in float32 ({triton_bf16} and {triton_fp32} in Triton), and its second
read {update}. The device runs {issued:.1f} million million a second. So in bfloat16 the first read
takes {slower:.2f} times as long as its bytes.

A step takes the longest of device, launches and host, and then the waits. What the peers move is
an estimate from their source; bench/predict.py lists the passes. We take their reductions across
rows to be as fast as copies, which favours them. Ours reads a gradient twice from memory, unless
the list is one gradient that fits L2.

{table}

bytes an element: moved by this provider. of floor: the fewest bytes that the rule must move
(bench/lists.py) at copy speed, over the predicted time. ratio: to fusedstep's first line of the
race; above 1 is slower.

## Targets

| target | predicted, for the CUDA backend | reached | measured |
| :-- | :-- | :-- | :-- |
{targets}

## One read instead of two

Adafactor's second read could come from L2, if it followed soon after the first: 6 bytes an element
instead of 8 in bfloat16. For this a list is cut into waves of {wave:.0f} MB of gradients. Two
are in flight, and all multiprocessors wait twice in each. A matrix that is larger than a wave is
read twice. bench/one_pass.py computes:

{one_pass}

Only barriers inside one launch could gain more than 3 %, and only on T5: most matrices of Llama do
not fit. Such a kernel was measured: 5.61 ms for llama-1b, where phases took 2.56
([the first day](2026-11-26-nvidia-h200/first.md)). So a step has phases, and two reads.
"""


def measured() -> tuple[dict[tuple[str, str, str, str], float], str]:
    """Milliseconds from the newest results of a GPU, by list, dtype, rule and provider, and a
    sentence that names these results."""
    if (results := readme.newest("step", gpu=True)) is None:
        return {}, "empty until `make gpu` has run."
    folder, numbers = results
    facts, found = numbers["environment"], {}
    by_cuda = facts["fusedstep_takes"].startswith("cuda")
    for row in numbers["rows"]:
        if row["ms"] and (by_cuda or row["provider"] != OURS):
            found[row["list"], row["dtype"], row["rule"], row["provider"]] = row["ms"]
    partial = ", interrupted" if numbers["interrupted"] else ""
    table = (folder / "step.md").relative_to(readme.RESULTS)
    source = f"{facts['gpu']} on {facts['date'][:10]}{partial} ([table]({table}))"
    return found, f"measured on {source}."


def page(rows: list[Prediction]) -> str:
    times, sentence = measured()
    lines = ["| " + " | ".join(HEADS) + " |", "|" + " :-- |" * 4 + " --: |" * 8 + " :-- |"]
    ours = rows[0]
    for row in rows:
        race = (row.rule, row.chosen.name, row.dtype)
        if (ours.rule, ours.chosen.name, ours.dtype) != race:
            ours = row
        who = (row.chosen.name, row.dtype, row.rule, row.provider)
        note = "; ".join(filter(None, (row.remark, "in L2" if row.in_cache else "")))
        cells = (
            *(row.chosen.name, row.dtype, row.rule, row.provider),
            *(f"{row.moved / row.chosen.elements:.2f}", f"{row.moved / 1e9:.2f}"),
            *(str(row.launches), f"{row.host * 1e3:.2f}", f"{row.seconds * 1e3:.3f}"),
            *(f"{row.share:.0%}", f"{row.seconds / ours.seconds:.2f}"),
            *(f"{times[who]:.3f}" if who in times else "", note),
        )
        lines.append("| " + " | ".join(cells) + " |")
    reached = [f"| {target} | {number} | {yes} | |" for target, number, yes in targets(rows)]
    return TEXT.format(
        table="\n".join(lines),
        targets="\n".join(reached),
        one_pass=one_pass.table(),
        wave=one_pass.WAVE / 1e6,
        host=predict.HOST,
        measured=sentence,
        copy=predict.COPY / 1e12,
        **{"l2": predict.L2 / 1e6, "gap": predict.GAP * 1e6, "wait": predict.WAIT * 1e6},
        **{"cuda": LAUNCH[OURS] * 1e6, "triton": LAUNCH[OURS_TRITON] * 1e6},
        **{"torch": predict.TORCH_LAUNCH * 1e6, "upload": predict.UPLOAD[OURS_TRITON] * 1e6},
        **{"ours": predict.OURS_EACH * 1e6, "fused": predict.FUSED_EACH * 1e6},
        **{"foreach": predict.FOREACH_EACH * 1e6, "adamw": predict.OURS_STEP["adamw"] * 1e6},
        **{"adafactor": predict.OURS_STEP["adafactor"] * 1e6, "issued": predict.ISSUED / 1e12},
        **{"bf16": predict.READ["bfloat16"], "fp32": predict.READ["float32"]},
        triton_bf16=predict.TRITON_READ["bfloat16"],
        triton_fp32=predict.TRITON_READ["float32"],
        **{
            "update": predict.UPDATE,
            "slower": predict.READ["bfloat16"] / predict.ISSUED * predict.COPY / 2,
        },
    )


def targets(rows: list[Prediction]) -> list[tuple[str, str, str]]:
    """Each target, what the predictions say about it, and whether it is reached."""
    by_key = {(r.rule, r.chosen.name, r.dtype, r.provider, r.remark): r for r in rows}

    def row(
        rule: str, name: str, provider: str, remark: str = "", dtype: str = "bfloat16"
    ) -> Prediction:
        return by_key[rule, name, dtype, provider, remark]

    def ratio(rule: str, name: str, peer: str) -> float:
        other = row(rule, name, peer, predict.COUNTED)
        return other.seconds / row(rule, name, OURS).seconds

    def words(reached: bool) -> str:
        return "yes" if reached else "no"

    adamw = [r for r in rows if r.rule == "adamw" and r.provider == OURS]
    fused = {
        r.chosen.name: row("adamw", r.chosen.name, "torch-fused", "", r.dtype).seconds / r.seconds
        for r in adamw
    }
    large = min(r.share for r in adamw if r.chosen.name == "1e9")
    small = row("adamw", "2000 small", OURS, "", "float32")
    fitting = row(TRAINER, predict.FITTING, OURS)
    fitting_floor = fitting.floor_bytes / predict.COPY
    each = small.host / len(small.chosen.shapes)
    lists = ("llama-1b", "t5-xl")
    # The share of a floor that counts both reads of the gradient: 8 bytes an element, not 6.
    twice = {name: row(TRAINER, name, OURS).share * 8 / 6 for name in (*predict.ABOVE, *lists)}
    peers = {
        f"{name}, {what}": ratio(rule, name, "transformers")
        for name in lists
        for rule, what in ((TRAINER, "Trainer's settings"), (DEFAULTS, "defaults"))
    }
    foreach = {name: ratio(TORCH, name, "torch-foreach") for name in lists}

    def listed(numbers: dict[str, float], form: str = "{:.2f}") -> str:
        return "; ".join(f"{name} {form.format(number)}" for name, number in numbers.items())

    return [
        ("AdamW: at least 0.92 of copy bandwidth at 1e9 elements",
         f"{large:.2f}, if a kernel of seven streams is as fast as a copy of two",
         words(large >= 0.92)),
        ("AdamW: not slower than torch fused, at every size",
         f"at least {min(fused.values()):.2f} x: the same bytes, fewer launches",
         words(min(fused.values()) >= 1)),
        ("AdamW on 2,000 small tensors: at least 10 x torch fused",
         f"{fused['2000 small']:.1f} x: this is the host's time, {small.host * 1e3:.2f} ms, of "
         f"which {predict.OURS_EACH * len(small.chosen.shapes) * 1e3:.2f} ms go to the walk over "
         "the tensors", words(fused["2000 small"] >= 10)),
        ("Adafactor bf16: at least 0.85 of the floor of 6 bytes where the gradient fits L2",
         f"4096x4096: {fitting.share:.2f}; the host takes {fitting.host * 1e6:.0f} us, and the "
         f"floor is {fitting_floor * 1e6:.0f} us. The device alone: "
         f"{fitting_floor / fitting.device:.2f}", words(fitting.share >= 0.85)),
        ("Adafactor bf16: at least 0.8 of the floor of 8 bytes above",
         listed(twice) + ": rows of up to 16,384 columns are read twice",
         words(min(twice.values()) >= 0.8)),
        ("Adafactor bf16 on llama-1b and t5-xl: at least 15 x transformers",
         listed(peers, "{:.1f} x") + ": its bytes give no more than "
         f"{predict.TRANSFORMERS_BYTES['bfloat16'] / 8:.1f} x, if its kernels run at copy speed",
         words(min(peers.values()) >= 15)),
        ("Adafactor bf16 on llama-1b and t5-xl: at least 15 x torch foreach",
         listed(foreach, "{:.1f} x") + ": reached only if torch's reductions are far slower "
         "than a copy, as on a CPU (13 x there)", words(min(foreach.values()) >= 15)),
        ("Host: below 70 us for one matrix, and 0.3 us for each of 2,000 parameters",
         f"{fitting.host * 1e6:.0f} us; {each * 1e6:.2f} us",
         words(fitting.host < 70e-6 and each < 0.3e-6)),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.predicted", description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help=f"default: {PAGE.name}")
    out = parser.parse_args().out
    out.write_text(page(predict.predictions()))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
