"""`python -m bench.memory`: bytes of optimizer state, and of a step, for each parameter."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch

from bench.allocations import Allocations, scratch_bytes, state_bytes
from bench.apart import Failed, one_by_one
from bench.command import Report, checked, command_options, names_of
from bench.devices import Device
from bench.lists import DTYPES, LISTS, MEBI, ParameterList
from bench.memory_plot import draw
from bench.memory_table import MemoryRow, Use, markdown
from bench.meter import memory
from bench.optimizers import HERE, RULES
from bench.progress import Progress
from bench.providers import OURS, Build, Race, reason

DEFAULT_LISTS = ("68M", "tiny")  # matrices, and vectors
STEPS_BEFORE = 2  # before the step that is measured
PROCESS_BYTES = 2 * MEBI  # what a process may use meanwhile for things other than tensors
RESIDENT_ERROR = 0.05  # bytes for each parameter: resident memory is shown only if it is as exact
PARAMETER_DTYPES = ("float32", "bfloat16")
WARM_UP = ParameterList("warm-up", ((600, 600), (70000,)))


def parameters(
    parameter_list: ParameterList, dtype: torch.dtype, kind: str
) -> list[torch.nn.Parameter]:
    """Parameters with gradients. Nothing is copied, because a copy would leave a higher peak."""
    params = []
    for value, gradient in parameter_list.tensors(dtype, kind):
        params.append(torch.nn.Parameter(value))
        params[-1].grad = gradient
    return params


def return_large_blocks() -> None:
    """Makes processes that start from now on return each large block when it is freed. Without this
    the C library keeps pieces that it cannot use again, several times the peak."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MEBI // 8))


def stepped(build: Build, params: list[torch.nn.Parameter], steps: int) -> torch.optim.Optimizer:
    optimizer = build(params)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def measure(build: Build, params: list[torch.nn.Parameter], kind: str) -> Use:
    """Allocations of three steps, then resident memory of three steps by a second optimizer."""
    with Allocations(kind) as earlier:
        optimizer = stepped(build, params, STEPS_BEFORE)
    with Allocations(kind) as last:
        optimizer.step()
    kept = earlier.left - state_bytes(optimizer, kind)
    if kind == "cpu":
        kept += scratch_bytes(optimizer)
    state = state_bytes(optimizer, "cpu", kind)
    del optimizer
    tensors = [tensor for param in params for tensor in (param, param.grad)]
    held = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    resident = resident_growth(build, params) if kind == "cpu" else None
    return Use(state, kept, last.most, held, resident)


def resident_growth(build: Build, params: list[torch.nn.Parameter]) -> int | None:
    """How much the kernel says that the same steps use. No allocation is recorded here, because the
    records of a peer's many temporaries take megabytes too. None if the list is too small."""
    tolerated = RESIDENT_ERROR * sum(param.numel() for param in params)
    if tolerated < PROCESS_BYTES:
        return None
    gc.collect()
    with suppress(OSError):  # if the peak cannot be reset, the next lines see that it is too high
        Path("/proc/self/clear_refs").write_text("5")
    now, highest = memory("cpu")
    if now is None or highest is None or highest - now > tolerated:
        return None  # an earlier, higher peak would hide the growth
    stepped(build, params, STEPS_BEFORE + 1)
    _, peak = memory("cpu")
    return None if peak is None else peak - highest


def uses(races: list[Race], kind: str) -> Iterator[Use | str]:
    """What one provider uses on several lists, or the reason why there is no number. A small list
    comes first, to load code and to start thread pools."""
    warm_up = replace(races[0], chosen=WARM_UP)
    for race in (warm_up, *races):
        result: Use | str
        try:
            build = RULES[race.rule].providers_on(kind)[race.names[0]]
            result = measure(build, parameters(race.chosen, DTYPES[race.dtype], kind), kind)
        except Exception as error:  # a peer may raise anything
            result = reason(error)
        if race is not warm_up:
            yield result


def of(race: Race) -> tuple[str, str]:
    return race.names[0], race.dtype


def rows_of(races: list[Race], device: Device) -> Iterator[MemoryRow]:
    """The rows of one provider, each as soon as its process has measured it."""

    def row(race: Race, result: Use | str) -> MemoryRow:
        use, note = (None, result) if isinstance(result, str) else (result, "")
        who = (race.rule, race.chosen.name, race.dtype, race.names[0])
        return MemoryRow(*who, race.chosen.elements, use, note)

    missing = list(races)
    try:
        for result in one_by_one(uses, (races, device.kind), device.race_seconds):
            yield row(missing.pop(0), result)
    except Failed as error:
        for race in missing:
            yield row(race, str(error))


def main() -> int:
    parser = command_options("memory", __doc__, HERE)
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=list(DEFAULT_LISTS))
    asked, device = checked(parser)
    # Large lists come first: after small tensors, pieces of memory would be used again unseen.
    cases = [(LISTS[name], dtype) for name in asked.lists for dtype in PARAMETER_DTYPES]
    runs = [
        [Race(rule, chosen, dtype, (name,)) for chosen, dtype in cases]
        for rule in asked.rules
        for name in names_of(rule, asked)
    ]
    runs = [[race for race in races if RULES[race.rule].takes(*of(race))] for races in runs]
    return_large_blocks()
    report = Report("memory", asked, device)
    rows: list[MemoryRow] = []

    def write() -> str:
        page = markdown(rows, report.headline())
        report.write(
            page, [asdict(row) | {"bytes_a_parameter": row.per_parameter()} for row in rows]
        )
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

    # In the table the providers of a race stand together, so that they are easy to compare.
    order = [(rule, chosen.name, dtype) for rule in asked.rules for chosen, dtype in cases]
    rows.sort(key=lambda row: order.index(row.key()))
    if rows:
        report.finish(write(), lambda path: draw(rows, report.headline(), path))
    ours_failed = any(row.provider.startswith(OURS) and row.use is None for row in rows)
    return 130 if report.interrupted else int(ours_failed)


if __name__ == "__main__":
    sys.exit(main())
