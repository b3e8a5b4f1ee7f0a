"""`python -m bench.scaling`: a step's time against the size of a tensor, and the number of them."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from bench.apart import Failed, one_by_one
from bench.clock import Outcome, copy_bandwidth
from bench.command import Report, checked, names_of, options
from bench.devices import DEVICES, Device
from bench.lists import ParameterList
from bench.progress import Progress
from bench.providers import OURS, OURS_TRITON, RULES, Race, reason
from bench.race import Options, run
from bench.scaling_plot import draw
from bench.table import Row, rows_of

# torch's plain loops are far behind on both axes; capturable ones are for graphs.
DEFAULT_PROVIDERS = (OURS, OURS_TRITON, "torch-fused", "torch-foreach", "transformers")
SLOWEST = 2.0  # seconds of a step, beyond which a provider is not measured
BUDGET, QUICK_BUDGET = 0.15, 0.05  # seconds of timed rounds at each size


def square(elements: int) -> ParameterList:
    side = math.isqrt(elements)
    return ParameterList(str(elements), ((side, side),))


def many(tensors: int) -> ParameterList:
    return ParameterList(str(tensors), ((32, 32),) * tensors)


AXES: dict[str, Callable[[int], ParameterList]] = {"tensors": many, "elements": square}
SIZES = {
    "cpu": {"elements": [4**k for k in range(5, 14)], "tensors": [4**k for k in range(7)]},
    "cuda": {"elements": [4**k for k in range(5, 16)], "tensors": [4**k for k in range(7)]},
}
QUICK_SIZES = {"elements": [4**5, 4**8, 4**11], "tensors": [1, 64, 1024]}
TITLES = {"elements": "one square matrix", "tensors": "tensors of (32, 32)"}

LEGEND = """\
ms: median time of one whole opt.step(); in brackets how many times as long as fusedstep, of paired
rounds. floor: the fewest bytes the rule must move (bench/lists.py), at the measured speed of
tensor.copy_; small lists, which stay in caches, can be faster."""


@dataclass(frozen=True)
class Curve:
    """The times of several providers along one axis: a panel of the picture."""

    rule: str
    axis: str
    dtype: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.rule}, {self.dtype}: {TITLES[self.axis]}"

    def race(self, size: int) -> Race:
        return Race(self.rule, AXES[self.axis](size), self.dtype, self.names)


Curves = dict[Curve, dict[int, list[Row]]]  # the rows of each size that is finished


def outcomes(curves: list[Curve], options: Options) -> Iterator[Outcome]:
    """Of every size of every curve. Sizes grow, so that memory an allocator kept is too small to
    spare a peer's temporaries the cost of new pages. A provider ends before the size at which its
    step would be too slow, going by the size before."""
    device = DEVICES[options.device]
    for curve in curves:
        ended: dict[str, str] = {}
        for size, following in zip(curve.sizes, [*curve.sizes[1:], math.inf], strict=True):
            names = tuple(name for name in curve.names if name not in ended)
            try:
                race = replace(curve.race(size), names=names)
                outcome = run(race, options, Progress(f"{curve}, {power(size)}"))
            except Exception as error:  # a tensor that does not fit, for one
                outcome = Outcome(failures=dict.fromkeys(names, reason(error)))
            outcome.failures |= ended
            yield outcome
            device.release_memory()
            for name, seconds in outcome.seconds.items():
                step = min(seconds)
                if step * following / size > SLOWEST:
                    seen = f"{step:.2g} s with {power(size)} {curve.axis}"
                    ended[name] = f"not measured: would take over {SLOWEST:g} s, going by {seen}"


def measure(
    curves: list[Curve], options: Options, copy: float, device: Device
) -> Iterator[tuple[Curve, int, list[Row]]]:
    """The rows of each size, as they come from a process of these curves' own."""
    left = [(curve, size) for curve in curves for size in curve.sizes]
    try:
        for outcome in one_by_one(outcomes, (curves, options), device.race_seconds):
            curve, size = left.pop(0)
            yield curve, size, rows_of(curve.race(size), outcome, copy, device)
    except Failed as error:
        for curve, size in left:
            outcome = Outcome(failures=dict.fromkeys(curve.names, str(error)))
            yield curve, size, rows_of(curve.race(size), outcome, copy, device)


def power(size: int) -> str:
    """As people write it, from 2^10 on."""
    exponent = size.bit_length() - 1
    return f"2^{exponent}" if size == 1 << exponent and exponent >= 10 else str(size)


def markdown(curves: Curves, headline: str, copy: float) -> str:
    lines = ["# A step's time against size", "", headline, "", LEGEND]
    for curve, sizes in curves.items():
        lines += ["", f"## {curve}", ""]
        lines.append(f"| {curve.axis} | floor | {', ms | '.join(curve.names)}, ms | note |")
        lines.append("|" + "--:|" * (2 + len(curve.names)) + ":--|")
        for size, rows in sizes.items():
            floor = f"{rows[0].floor_bytes / copy * 1e3:.3g}"
            cells = [power(size), floor, *map(shown, rows), note_of(rows)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def shown(row: Row) -> str:
    if row.ms is None:
        return "-"
    ratio = f" ({row.ratio:.3g} x)" if row.ratio and row.provider != OURS else ""
    return f"{row.ms:.3g}{ratio}"


def note_of(rows: list[Row]) -> str:
    if len({row.note for row in rows}) == 1:
        return rows[0].note
    return "; ".join(f"{row.provider} {row.note}" for row in rows if row.note).replace("|", "\\|")


def runs_of(asked: argparse.Namespace, sizes: dict[str, list[int]]) -> dict[str, list[Curve]]:
    """What goes into a process each. A quick look spares itself the start of several."""
    runs: dict[str, list[Curve]] = {}
    for rule in asked.rules:
        for dtype, axes in zip(RULES[rule].dtypes, (AXES, ("elements",)), strict=False):
            curves = [
                Curve(rule, axis, dtype, names, tuple(sizes[axis]))
                for axis in axes
                if (names := names_of(rule, asked))
            ]
            runs.setdefault("every curve" if asked.quick else f"{rule} {dtype}", []).extend(curves)
    return {title: curves for title, curves in runs.items() if curves}


def main() -> int:
    parser = options("scaling", __doc__, DEFAULT_PROVIDERS)
    parser.add_argument("--quick", action="store_true", help="a few sizes, in a few seconds")
    asked, device = checked(parser)
    budget = QUICK_BUDGET if asked.quick else BUDGET
    settings = Options(None, budget, None, device.kind, extras=False)
    runs = runs_of(asked, QUICK_SIZES if asked.quick else SIZES[device.kind])
    report = Report("scaling", asked, device)
    curves: Curves = {}
    copy, disturbed = 0.0, False

    def write() -> str:
        page = markdown(curves, report.headline(copy), copy)
        rows = [
            {"axis": curve.axis, "size": size, "floor_ms": row.floor_bytes / copy * 1e3}
            | asdict(row)
            for curve, finished in curves.items()
            for size, own in finished.items()
            for row in own
        ]
        report.write(page, rows, copy_bytes_a_second=copy, copy_disturbed=disturbed)
        return page

    try:
        progress = Progress("copy bandwidth")
        copy, disturbed = copy_bandwidth(device, progress.on_round)
        progress.done(f"{copy / 1e9:.1f} GB/s" + (", disturbed" if disturbed else ""))
        device.release_memory()
        for number, (title, own) in enumerate(runs.items(), 1):
            progress = Progress(f"[{number}/{len(runs)}] {title}")
            for curve, size, rows in measure(own, settings, copy, device):
                curves.setdefault(curve, {})[size] = rows
                write()
            progress.done(", ".join(f"{row.provider} {shown(row)}" for row in rows))
    except KeyboardInterrupt:
        report.interrupt()

    if curves:
        report.finish(write(), lambda path: draw(curves, report.headline(copy), copy, path))
    every = [row for sizes in curves.values() for rows in sizes.values() for row in rows]
    ours_failed = any(row.provider.startswith(OURS) and row.ms is None for row in every)
    return 130 if report.interrupted else int(ours_failed)


if __name__ == "__main__":
    sys.exit(main())
