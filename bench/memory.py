"""`python -m bench.memory`: measured bytes of optimizer state and of a step, for each parameter."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench.allocations import Allocations, scratch_bytes, state_bytes
from bench.apart import Failed, one_by_one
from bench.command import Report, checked, names_of, options
from bench.devices import Device
from bench.lists import DTYPES, LISTS, MEBI, ParameterList
from bench.memory_plot import draw
from bench.meter import memory
from bench.progress import Progress
from bench.providers import HERE, OURS, RULES, Build, Race, reason

DEFAULT_LISTS = ("68M", "tiny")  # matrices, and vectors
STEPS_BEFORE = 2  # the one that is looked at
PROCESS_BYTES = 2 * MEBI  # that a process may take for other ends than tensors meanwhile
RESIDENT_ERROR = 0.05  # bytes for each parameter; where it would be larger, none is shown
PARAMETER_DTYPES = ("float32", "bfloat16")
WARM_UP = ParameterList("warm-up", ((600, 600), (70000,)))
COLUMNS = ("state", "kept", "peak", "sum", "resident")

LEGEND = """\
Bytes for each parameter beside parameters and gradients. state: the tensors in opt.state. kept:
what else stays allocated between steps (scratch and work lists; on a GPU also what its allocator
adds to a tensor's size). peak: what the third step had allocated at most, beside all that was there
before it. sum: of these three, what training needs. resident: growth of the process' highest
resident memory over the three steps, as the kernel counts pages. It sees all memory, torch's or
not, and has to be about the sum; not shown for lists that are too small for it."""


@dataclass(frozen=True)
class Use:
    """Bytes beside parameters and gradients."""

    state: int
    kept: int
    peak: int
    resident: int | None = None


@dataclass(frozen=True)
class Row:
    rule: str
    list: str
    dtype: str
    provider: str
    elements: int
    use: Use | None = None
    note: str = ""

    def key(self) -> tuple[str, str, str]:
        return self.rule, self.list, self.dtype

    def per_parameter(self) -> dict[str, float]:
        """Of each column, as far as there is a number for it."""
        if self.use is None:
            return {}
        every = asdict(self.use) | {"sum": self.use.state + self.use.kept + self.use.peak}
        return {name: every[name] / self.elements for name in COLUMNS if every[name] is not None}

    def summary(self) -> str:
        found = f"{self.per_parameter()['sum']:.3f} B" if self.use else self.note
        return f"{self.list} {self.dtype} {found}"


def parameters(chosen: ParameterList, dtype: torch.dtype, kind: str) -> list[torch.nn.Parameter]:
    """With gradients, and without the copies that would leave a higher peak behind."""
    params = []
    for value, gradient in chosen.tensors(dtype, kind):
        params.append(torch.nn.Parameter(value))
        params[-1].grad = gradient
    return params


def large_tensors_go_back() -> None:
    """Processes that are started from now on map each of them by itself, and give it back when it
    is freed: else the C library keeps pieces that it cannot use again, several times the peak."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MEBI // 8))


def stepped(build: Build, params: list[torch.nn.Parameter], steps: int) -> torch.optim.Optimizer:
    optimizer = build(params)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def measure(build: Build, params: list[torch.nn.Parameter], kind: str) -> Use:
    """Three steps of an optimizer of its own, and of another one for the resident memory."""
    with Allocations(kind) as earlier:
        optimizer = stepped(build, params, STEPS_BEFORE)
    with Allocations(kind) as last:
        optimizer.step()
    kept = earlier.left - state_bytes(optimizer, kind)
    if kind == "cpu":
        kept += scratch_bytes(optimizer)
    state = state_bytes(optimizer, "cpu", kind)
    del optimizer
    resident = resident_growth(build, params) if kind == "cpu" else None
    return Use(state, kept, last.most, resident)


def resident_growth(build: Build, params: list[torch.nn.Parameter]) -> int | None:
    """The kernel's count for the same steps, while nothing records allocations: records of a peer's
    many temporaries take megabytes, too. None where the list is too small to tell it from noise."""
    tolerated = RESIDENT_ERROR * sum(param.numel() for param in params)
    if tolerated < PROCESS_BYTES:
        return None
    gc.collect()
    with suppress(OSError):  # then earlier peaks are seen to be higher than what is in use
        Path("/proc/self/clear_refs").write_text("5")
    now, highest = memory("cpu")
    if now is None or highest is None or highest - now > tolerated:
        return None  # a higher peak of earlier work would hide the growth
    stepped(build, params, STEPS_BEFORE + 1)
    _, most = memory("cpu")
    return None if most is None else most - highest


def uses(races: list[Race], kind: str) -> Iterator[Use | str]:
    """Of one provider on several lists, or why there is none. A small list comes before all of
    them, so that code is there and pools of threads have begun."""
    warm_up = replace(races[0], chosen=WARM_UP)
    for race in (warm_up, *races):
        found: Use | str
        try:
            build = RULES[race.rule].providers_on(kind)[race.names[0]]
            found = measure(build, parameters(race.chosen, DTYPES[race.dtype], kind), kind)
        except Exception as error:  # a peer may raise anything
            found = reason(error)
        if race is not warm_up:
            yield found


def rows_of(races: list[Race], device: Device) -> Iterator[Row]:
    """From a process of the provider's own, each as soon as it is measured."""

    def row(race: Race, found: Use | str) -> Row:
        chosen, use = race.chosen, None if isinstance(found, str) else found
        note = found if isinstance(found, str) else ""
        return Row(race.rule, chosen.name, race.dtype, race.names[0], chosen.elements, use, note)

    left = list(races)
    try:
        for found in one_by_one(uses, (races, device.kind), device.race_seconds):
            yield row(left.pop(0), found)
    except Failed as error:
        for race in left:
            yield row(race, str(error))


def markdown(rows: list[Row], headline: str) -> str:
    headings = ["rule", "list", "dtype", "provider", *COLUMNS, "note"]
    lines = ["# Memory of an optimizer", "", headline, "", LEGEND, ""]
    lines.append(f"| {' | '.join(headings)} |")
    lines.append(f"|{':--|' * 4}{'--:|' * len(COLUMNS)}:--|")
    for row in rows:
        found = row.per_parameter()
        cells = [f"{found[name]:.3f}" if name in found else "-" for name in COLUMNS]
        note = row.note.replace("|", "\\|")
        lines.append(f"| {' | '.join([*row.key(), row.provider, *cells, note])} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = options("memory", __doc__, HERE)
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=list(DEFAULT_LISTS))
    asked, device = checked(parser)
    # The large list first: pieces that small tensors leave would be used again, unseen.
    cases = [(LISTS[name], dtype) for name in asked.lists for dtype in PARAMETER_DTYPES]
    runs = [
        [Race(rule, chosen, dtype, (name,)) for chosen, dtype in cases]
        for rule in asked.rules
        for name in names_of(rule, asked)
    ]
    large_tensors_go_back()
    report = Report("memory", asked, device)
    rows: list[Row] = []

    def write() -> str:
        page = markdown(rows, report.headline())
        found = [asdict(row) | {"bytes_a_parameter": row.per_parameter()} for row in rows]
        report.write(page, found)
        return page

    try:
        for number, races in enumerate(runs, 1):
            title = f"{races[0].rule} {races[0].names[0]}"
            progress = Progress(f"[{number}/{len(runs)}] {title}")
            for row in rows_of(races, device):
                rows.append(row)
                write()
            progress.done(", ".join(row.summary() for row in rows[-len(races) :]))
    except KeyboardInterrupt:
        report.interrupt()

    # Providers beside each other, for who compares them.
    order = [(rule, chosen.name, dtype) for rule in asked.rules for chosen, dtype in cases]
    rows.sort(key=lambda row: order.index(row.key()))
    if rows:
        report.finish(write(), lambda path: draw(rows, report.headline(), path))
    ours_failed = any(row.provider.startswith(OURS) and row.use is None for row in rows)
    return 130 if report.interrupted else int(ours_failed)


if __name__ == "__main__":
    sys.exit(main())
