"""`python -m bench.readme`: writes the numbers of README and docs/performance.md from the newest
results. Nobody types a number there, and a test fails if a page differs from bench/results."""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.contestants import PEER
from bench.lists import LISTS
from bench.optimizers import PROVIDERS, RULES
from bench.providers import LOW_PRECISION, OURS
from bench.table import percent
from bench.train_table import ENDS, FLOAT32

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- numbers: (\w+) -->\n).*?(<!-- end of numbers -->\n)", re.DOTALL)

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}

COPY_SPEED = "the same bytes at copy speed"  # the floor of results that do not name it
Results = dict[str, Any]


def newest(name: str, *, gpu: bool = False) -> tuple[Path, Results] | None:
    """The latest results of this name, on a GPU or on a CPU, and their folder."""
    found = []
    for path in RESULTS.glob(f"*/{name}.json"):
        results = json.loads(path.read_text())
        if ("gpu" in results["environment"]) == gpu:
            found.append((results["environment"]["date"], path.parent, results))
    if not found:
        return None
    _, folder, results = max(found, key=lambda entry: entry[0])
    return folder, results


def table(headings: list[str], lines: list[list[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def label_of(name: str) -> str:
    return LISTS[name].label or name if name in LISTS else name


def source_of(folder: Path, results: Results, page: str) -> str:
    """A sentence on device, versions and command, with a link to the whole table."""
    facts = results["environment"]
    if "gpu" in facts:
        where = f"{facts['gpu']}, fusedstep's backend {facts['fusedstep_takes']}"
    else:
        where = f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads"
    partial = ", interrupted: a part of it" if results["interrupted"] else ""
    return (
        f"{where}, torch {facts['torch']}, transformers {facts['transformers']}, "
        f"commit {str(facts['commit'] or 'unknown')[:12]}, `{facts['command']}` on "
        f"{facts['date'][:10]}{partial}: "
        f"[the whole table]({(folder / Path(page).name).relative_to(ROOT)}).\n\n"
    )


def step(name: str = "step", *, gpu: bool = False) -> str:
    """Our milliseconds, and how many times as long the others take."""
    found = newest(name, gpu=gpu)
    if found is None:
        return "Not measured yet.\n"
    folder, results = found
    timed = [row for row in results["rows"] if row["ms"]]
    names = [
        name for name in PROVIDERS if name != OURS and any(r["provider"] == name for r in timed)
    ]
    races: dict[tuple[str, str, str], dict[str, Results]] = {}
    for row in timed:
        races.setdefault((row["rule"], row["list"], row["dtype"]), {})[row["provider"]] = row
    has_floor = "floor" in results  # older results have not
    lines = []
    for (rule, chosen, dtype), by_provider in races.items():
        if OURS not in by_provider:
            continue
        own = by_provider[OURS]
        who = [RULES[rule].label, f"{label_of(chosen)}, {DTYPES[dtype]}"]
        ratios = [
            f"{by_provider[name]['ratio']:.3g} x" if name in by_provider else "" for name in names
        ]
        ours = [f"{own['ms']:.3g} ms"]
        if has_floor:
            ours.append(percent(own["share_of_floor"]))
        lines.append([*who, *ours, *ratios])
    above, headings = source_of(folder, results, f"{name}.md"), ["rule", "list", OURS]
    if has_floor:
        above += f"of floor: the floor over our time. The floor is {results['floor']}.\n\n"
        headings.append("of floor")
    return above + table([*headings, *names], lines)


def memory() -> str:
    """Bytes of state for each parameter, and what a step needs on top of it."""
    found = newest("memory")
    if found is None:
        return "Not measured yet.\n"
    folder, results = found
    lines = []
    for row in results["rows"]:
        if row["use"] and row["list"] == "68M":
            state, more = row["use"]["state"], row["use"]["kept"] + row["use"]["peak"]
            numbers = [f"{bytes_ / row['elements']:.3f}" for bytes_ in (state, more)]
            who = [RULES[row["rule"]].label, DTYPES[row["dtype"]], row["provider"]]
            lines.append([*who, *numbers])
    headings = ["rule", "parameters", "by", "state", "more during a step"]
    return source_of(folder, results, "memory.md") + table(headings, lines)


def precision() -> str:
    """What each option for low precision holds in memory, and how long a step takes with it."""
    held, raced = newest("precision/memory"), newest("precision/step")
    if held is None or raced is None:
        return "Not measured yet.\n"
    ratios = {(row["rule"], row["provider"]): row for row in raced[1]["rows"]}
    lines = []
    for row in held[1]["rows"]:
        options = LOW_PRECISION.get(row["provider"], {})
        if not row["use"] or row["dtype"] != "bfloat16":
            continue
        words = ", ".join(map(option, options.items())) or "none"
        step_of = ratios.get((row["rule"], row["provider"]))
        ratio = f"{step_of['ratio']:.2f} x" if step_of and step_of["ratio"] else ""
        numbers = [f"{row['bytes_a_parameter'][name]:.2f}" for name in ("state", "all")]
        lines.append([RULES[row["rule"]].label, words, *numbers, ratio])
    headings = ["rule, bf16 parameters", "options", "bytes of state", "with parameter and gradient"]
    return (
        source_of(*held, "memory.md")
        + source_of(*raced, "step.md")
        + table([*headings, "a step"], lines)
    )


def option(pair: tuple[str, Any]) -> str:
    """An option as it stands in code."""
    name, value = pair
    return f"`{name}={value if str(value).startswith('torch.') else repr(value)}`"


def training(name: str = "gpt-adamw") -> str:
    """Our runs and the peer's, and how much their losses differ."""
    found = newest(name)
    reports = sorted(found[0].glob("*-*.json")) if found else []
    lines, pictures = [], []
    for path in reports:
        report = json.loads(path.read_text())
        for name, run in report["runs"].items():
            if "failed" in run:
                continue
            difference = [
                f"{pair['largest_loss_difference']:.2g}"
                for pair in report["comparisons"]
                if pair["of"][0] == name and pair["of"][1] in (PEER, FLOAT32)
            ]
            lines.append(
                [
                    path.stem,
                    name,
                    f"{statistics.mean(run['losses'][-ENDS:]):.4f}",
                    *(difference or [""]),
                    f"{run['characters_a_second']:.0f}",
                    f"{run['optimizer_share']:.1%}",
                ]
            )
        pictures.append(f"![losses of {path.stem}]({path.with_suffix('.png').relative_to(ROOT)})\n")
    if not lines:
        return "Not measured yet.\n"
    headings = ["run", "by", "last losses", "largest difference", "characters/s", "opt.step()"]
    return table(headings, lines) + "\n" + "".join(pictures)


def scaling() -> str:
    found = newest("scaling")
    if found is None:
        return "Not measured yet.\n"
    folder, results = found
    picture = (folder / "scaling.png").relative_to(ROOT)
    floor = results.get("floor", COPY_SPEED)
    return (
        f"The dashed line is the floor: {floor}.\n\n"
        f"![a step's time against elements and tensors]({picture})\n"
    )


# Six rows that say most: rule, list, on a GPU.
SUMMARY = (
    ("adamw", "68M", False),
    ("adamw", "tiny", False),
    ("adafactor-hf-trainer", "68M", False),
    ("adamw", "llama-1b", True),
    ("adafactor-hf-trainer", "llama-1b", True),
    ("adafactor-torch", "llama-1b", True),
)


def summary() -> str:
    """A few rows in bfloat16 of both tables of steps, each with the fastest peer."""
    lines, machines = [], []
    for rule, chosen, gpu in SUMMARY:
        if (found := newest("step", gpu=gpu)) is None:
            continue
        facts = found[1]["environment"]
        machine = facts["gpu"] if gpu else f"{facts['cpu']}, {facts['threads']} threads"
        if (dated := f"{machine}, {facts['date'][:10]}") not in machines:
            machines.append(dated)
        race = {
            row["provider"]: row
            for row in found[1]["rows"]
            if (row["rule"], row["list"], row["dtype"]) == (rule, chosen, "bfloat16") and row["ms"]
        }
        peers = [row for name, row in race.items() if not name.startswith(OURS)]
        if OURS not in race or not peers:
            continue
        fastest = min(peers, key=lambda row: float(row["ratio"]))
        lines.append(
            [
                RULES[rule].label,
                f"{label_of(chosen)}, bf16",
                "GPU" if gpu else "CPU",
                f"{race[OURS]['ms']:.3g} ms",
                f"{fastest['ratio']:.3g} x, {fastest['provider']}",
            ]
        )
    if not lines:
        return "Not measured yet.\n"
    headings = ["rule", "parameters", "on a", OURS, "the fastest peer"]
    return table(headings, lines) + "\n" + "; ".join(machines) + ".\n"


BLOCKS = {
    "summary": summary,
    "step_on_a_cpu": step,
    "models_on_a_cpu": lambda: step("models/step"),
    "step_on_a_gpu": lambda: step(gpu=True),
    "scaling": scaling,
    "memory": memory,
    "training": training,
    "precision": precision,
    "precision_in_training": lambda: training("precision/gpt-adamw"),
}


def written(text: str, up: str = "") -> str:
    """A page with the numbers of the results. `up` leads from its folder to the repository's."""
    for _, name, _ in BLOCK.findall(text):
        if name not in BLOCKS:
            raise ValueError(f"a page asks for numbers {name!r}: there are {', '.join(BLOCKS)}")

    def block(match: re.Match[str]) -> str:
        numbers = BLOCKS[match[2]]().replace("](bench/", f"]({up}bench/")
        return f"{match[1]}{numbers}{match[3]}"

    return BLOCK.sub(block, text)


def page(path: Path) -> str:
    """What a page should say."""
    return written(path.read_text(), "../" * (len(path.relative_to(ROOT).parts) - 1))


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    asked = parser.parse_args(words)
    stale = [path for path in PAGES if page(path) != path.read_text()]
    if asked.check:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        print(f"stale: {names}. Run python -m bench.readme" if stale else "up to date")
        return int(bool(stale))
    for path in stale:
        path.write_text(page(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
