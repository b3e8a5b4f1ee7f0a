"""`python -m bench.scaling`: a step's time against the size of a tensor, and against the number of
tensors."""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

from bench.apart import Failed, one_by_one
from bench.clock import Outcome, copy_bandwidth
from bench.command import Report, checked, command_options, names_of
from bench.devices import DEVICES, Device
from bench.optimizers import RULES
from bench.progress import Progress
from bench.providers import OURS, OURS_TRITON, reason
from bench.race import Options, run
from bench.scaling_plot import draw
from bench.scaling_table import AXES, Curve, Curves, markdown, power, time_and_ratio
from bench.table import Row, rows_of

# We leave out torch's plain loops, which are far behind on both axes, and the capturable steps,
# which are made for CUDA graphs.
DEFAULT_PROVIDERS = (OURS, OURS_TRITON, "torch-fused", "torch-foreach", "transformers")
# The others have the walkers of AdamW.
DEFAULT_RULES = tuple(
    rule for rule, entry in RULES.items() if entry.lists is None and not entry.only_matrices
)
SLOWEST = 2.0  # seconds: we stop measuring a provider before a step takes longer
BUDGET, QUICK_BUDGET = 0.15, 0.05  # seconds of timed rounds for each size

SIZES = {
    "cpu": {"elements": [4**k for k in range(5, 14)], "tensors": [4**k for k in range(7)]},
    "cuda": {"elements": [4**k for k in range(5, 16)], "tensors": [4**k for k in range(7)]},
}
QUICK_SIZES = {"elements": [4**5, 4**8, 4**11], "tensors": [1, 64, 1024]}


def outcomes(curves: list[Curve], options: Options) -> Iterator[Outcome]:
    """The outcome of every size of every curve. Sizes grow, so the memory that an allocator kept is
    always too small for a peer's next temporaries, and the peer pays for new pages as it would in
    training. A provider stops when its next step would be too slow, judging by the last one."""
    device = DEVICES[options.device]
    for curve in curves:
        stopped: dict[str, str] = {}
        for size, next_size in zip(curve.sizes, [*curve.sizes[1:], math.inf], strict=True):
            names = tuple(name for name in curve.names if name not in stopped)
            try:
                race = replace(curve.race(size), names=names)
                outcome = run(race, options, Progress(f"{curve}, {power(size)}"))
            except Exception as error:  # such as a tensor that does not fit
                outcome = Outcome(failures=dict.fromkeys(names, reason(error)))
            outcome.failures |= stopped
            yield outcome
            device.release_memory()
            for name, seconds in outcome.seconds.items():
                step = min(seconds)
                if step * next_size / size > SLOWEST:
                    last = f"{step:.2g} s with {power(size)} {curve.axis}"
                    stopped[name] = f"not measured: would take over {SLOWEST:g} s, going by {last}"


def measure(
    curves: list[Curve], options: Options, copy: float, device: Device
) -> Iterator[tuple[Curve, int, list[Row]]]:
    """The rows of each size, as a process of its own delivers them."""
    missing = [(curve, size) for curve in curves for size in curve.sizes]
    try:
        for outcome in one_by_one(outcomes, (curves, options), device.race_seconds):
            curve, size = missing.pop(0)
            yield curve, size, rows_of(curve.race(size), outcome, copy, device)
    except Failed as error:
        for curve, size in missing:
            outcome = Outcome(failures=dict.fromkeys(curve.names, str(error)))
            yield curve, size, rows_of(curve.race(size), outcome, copy, device)


def runs_of(asked: argparse.Namespace, sizes: dict[str, list[int]]) -> dict[str, list[Curve]]:
    """The curves of each process. A quick run uses one process, because starting several takes too
    long."""
    runs: dict[str, list[Curve]] = {}
    for rule in asked.rules:
        # Only the first dtype is measured against the number of tensors.
        for dtype, axes in zip(RULES[rule].dtypes, (AXES, ("elements",)), strict=False):
            curves = [
                Curve(rule, axis, dtype, names, tuple(sizes[axis]))
                for axis in axes
                if (names := names_of(rule, asked))
            ]
            runs.setdefault("every curve" if asked.quick else f"{rule} {dtype}", []).extend(curves)
    return {title: curves for title, curves in runs.items() if curves}


def main() -> int:
    parser = command_options("scaling", __doc__, DEFAULT_PROVIDERS, DEFAULT_RULES)
    parser.add_argument("--quick", action="store_true", help="a few sizes, in a few seconds")
    asked, device = checked(parser)
    budget = QUICK_BUDGET if asked.quick else BUDGET
    settings = Options(None, budget, None, device.kind, extras=False)
    runs = runs_of(asked, QUICK_SIZES if asked.quick else SIZES[device.kind])
    report = Report("scaling", asked, device)
    finished: Curves = {}
    copy, disturbed = 0.0, False

    def write() -> str:
        page = markdown(finished, report.headline(copy), device.floor_is)
        rows = [
            {"axis": curve.axis, "size": size} | asdict(row)
            for curve, sizes in finished.items()
            for size, rows in sizes.items()
            for row in rows
        ]
        report.write(
            page,
            rows,
            copy_bytes_a_second=copy,
            copy_disturbed=disturbed,
            floor=device.floor_is,
        )
        return page

    try:
        progress = Progress("copy bandwidth")
        copy, disturbed = copy_bandwidth(device, progress.on_round)
        progress.done(f"{copy / 1e9:.1f} GB/s" + (", disturbed" if disturbed else ""))
        device.release_memory()
        for number, (title, curves) in enumerate(runs.items(), 1):
            progress = Progress(f"[{number}/{len(runs)}] {title}")
            for curve, size, rows in measure(curves, settings, copy, device):
                finished.setdefault(curve, {})[size] = rows
                write()
            progress.done(", ".join(f"{row.provider} {time_and_ratio(row)}" for row in rows))
    except KeyboardInterrupt:
        report.interrupt()

    if finished:
        report.finish(
            write(), lambda path: draw(finished, report.headline(copy), device.floor_is, path)
        )
    all_rows = [row for sizes in finished.values() for rows in sizes.values() for row in rows]
    ours_failed = any(row.provider.startswith(OURS) and row.ms is None for row in all_rows)
    return 130 if report.interrupted else int(ours_failed)


if __name__ == "__main__":
    sys.exit(main())
