"""The rows of a race, as an aligned table and in Markdown."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from bench.clock import Outcome
from bench.devices import Device
from bench.floor import FLOOR
from bench.lists import DTYPES
from bench.optimizers import RULES
from bench.providers import LOW_PRECISION, OURS, Race

HEADINGS = (
    *("rule", "list", "dtype", "provider", "ms", "quartiles", "host ms", "GB/s", "floor ms"),
    *("of floor", "ratio", "us/param", "launches", "extra MB", "rounds", "rejected", "note"),
)
LEFT_ALIGNED = {"rule", "list", "dtype", "provider", "note"}

LEGEND = """\
ms: median time of one whole opt.step(). ratio: how many times as long as fusedstep, as the median
of paired rounds; above 1 is slower. GB/s: the fewest bytes that the rule must move
(bench/lists.py), divided by that time. floor ms: the least time that these bytes take. of floor:
the floor over the time of the step, so 100 % is the best that there can be. us/param: host time for
each parameter, from 1200 tensors of one element.
launches: kernels on a GPU; on a CPU the torch operators that a step calls, and our own launches.
extra MB: the most memory that a step needs beside parameters, gradients and states. rejected:
rounds that do not count, because other processes used the CPU. If most rounds were like that, the
race is called disturbed and all of them count."""


@dataclass(frozen=True)
class Row:
    rule: str
    list: str
    dtype: str
    provider: str
    parameters: int
    elements: int
    floor_bytes: int
    ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None
    gigabytes_a_second: float | None = None
    floor_ms: float | None = None
    share_of_floor: float | None = None
    ratio: float | None = None
    us_per_parameter: float | None = None
    rounds: int = 0
    rejected: int = 0
    note: str = ""
    host_ms: float | None = None
    launches: int | None = None
    extra_bytes: int | None = None


def rows_of(race: Race, outcome: Outcome, copy: float, device: Device) -> list[Row]:
    """`copy` is the copy bandwidth in bytes a second. It gives the floor where none is measured."""
    chosen = race.chosen
    rule, dtype = RULES[race.rule].rule, DTYPES[race.dtype]
    floor = chosen.floor_bytes(rule, dtype)
    cache_note = device.cache_note(chosen.held_bytes(rule, dtype), chosen.host_bound)
    who = (race.rule, chosen.name, race.dtype)
    size = (len(chosen.shapes), chosen.elements, floor)
    ours = outcome.seconds.get(OURS)
    floors = outcome.floor_seconds
    if not (device.measures_floor or chosen.host_bound):
        floors = [floor / copy] * max(map(len, outcome.seconds.values()), default=1)
    floor_ms = statistics.median(floors) * 1e3 if floors else None
    disturbed = f"disturbed in {outcome.rejected} rounds" if outcome.disturbed else ""
    no_floor = f"no floor: {outcome.failures[FLOOR]}" if FLOOR in outcome.failures else ""
    rows = []
    for name in race.names:
        seconds = outcome.seconds.get(name)
        if not seconds:
            note = outcome.failures.get(name, "failed: no round was finished")
            rows.append(Row(*who, name, *size, floor_ms=floor_ms, note=note))
            continue
        median = statistics.median(seconds)
        on_host = outcome.host_seconds.get(name)
        low, _, high = (
            statistics.quantiles(seconds, method="inclusive") if seconds[1:] else seconds * 3
        )
        has_floor = name not in LOW_PRECISION  # those move other bytes
        rows.append(
            Row(
                *who,
                name,
                *size,
                ms=median * 1e3,
                quartiles_ms=(low * 1e3, high * 1e3),
                gigabytes_a_second=(
                    floor / median / 1e9 if has_floor and not chosen.host_bound else None
                ),
                floor_ms=floor_ms if has_floor else None,
                share_of_floor=paired_ratio(floors, seconds) if has_floor else None,
                ratio=paired_ratio(seconds, ours),
                us_per_parameter=median * 1e6 / len(chosen.shapes) if chosen.host_bound else None,
                rounds=len(seconds),
                rejected=0 if outcome.disturbed else outcome.rejected,
                note="; ".join(filter(None, (disturbed, cache_note, no_floor))),
                host_ms=statistics.median(on_host) * 1e3 if on_host else None,
                launches=outcome.launches.get(name),
                extra_bytes=outcome.extra_bytes.get(name),
            )
        )
    return rows


def paired_ratio(seconds: list[float], others: list[float] | None) -> float | None:
    """The median over rounds of a time over another's in the same round."""
    if not seconds or not others:
        return None
    return statistics.median(map(float.__truediv__, seconds, others))


def cut_note(races: list[Race], found: Mapping[Race, list[Row]]) -> str:
    """Says which races have no rows, and how many have rows without launches and memory."""
    missing = [str(race) for race in races if race not in found]
    uncounted = sum(
        any(row.ms for row in rows) and all(row.launches is None for row in rows)
        for rows in found.values()
    )
    notes = []
    if missing:
        names = ", ".join(missing)
        notes.append(f"CUT SHORT: {len(missing)} of {len(races)} races are missing: {names}.")
    if uncounted:
        notes.append(f"Launches and memory of {uncounted} of {len(races)} races were not counted.")
    return " ".join(notes)


def percent(share: float | None) -> str:
    """A small share with one digit more: peers on small lists are far from the floor."""
    return "-" if share is None else f"{share:.{int(share < 0.1)}%}"


def cells(row: Row) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    quartiles = row.quartiles_ms
    return (
        *(row.rule, row.list, row.dtype, row.provider),
        shown(row.ms, "{:.3f}"),
        "{:.3f}..{:.3f}".format(*quartiles) if quartiles else "-",
        shown(row.host_ms, "{:.3f}"),
        shown(row.gigabytes_a_second, "{:.1f}"),
        shown(row.floor_ms, "{:.3f}"),
        percent(row.share_of_floor),
        shown(row.ratio, "{:.2f}"),
        shown(row.us_per_parameter, "{:.2f}"),
        shown(row.launches, "{}"),
        shown(None if row.extra_bytes is None else row.extra_bytes / 1e6, "{:.2f}"),
        *(str(row.rounds), str(row.rejected), row.note),
    )


def columns(rows: list[Row]) -> list[tuple[str, ...]]:
    """The headings and the cells of each row, without empty columns."""
    lines = [HEADINGS, *map(cells, rows)]
    empty = {k for k, column in enumerate(zip(*lines[1:], strict=True)) if set(column) == {"-"}}
    return [tuple(cell for k, cell in enumerate(line) if k not in empty) for line in lines]


def race_key(row: Row) -> tuple[str, str, str]:
    return row.rule, row.list, row.dtype


def text(rows: list[Row]) -> str:
    """The aligned table, with an empty line between races."""
    headings, *lines = columns(rows)
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]

    def aligned(line: tuple[str, ...]) -> str:
        return "  ".join(
            cell.ljust(width) if heading in LEFT_ALIGNED else cell.rjust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ).rstrip()

    printed, previous = [aligned(headings)], None
    for row, line in zip(rows, lines, strict=True):
        if race_key(row) != previous:
            printed.append("")
        previous = race_key(row)
        printed.append(aligned(line))
    return "\n".join(printed)


def markdown(rows: list[Row], headline: str, device: Device) -> str:
    headings, *lines = columns(rows)
    alignment = [":--" if heading in LEFT_ALIGNED else "--:" for heading in headings]
    body = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    printed = ["| " + " | ".join(line) + " |" for line in [headings, alignment, *body]]
    legend = LEGEND + device.legend
    return "\n".join(["# One optimizer step", "", headline, "", *printed, "", legend, ""])
