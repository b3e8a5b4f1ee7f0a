"""The benchmark has one entry for each optimizer of the package, and derives everything else."""

import inspect
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
sys.path.insert(0, str(ROOT))  # `bench` is not installed

import fusedstep.hf  # noqa: E402
import fusedstep.optim  # noqa: E402
from bench import contestants, race, readme, step  # noqa: E402
from bench.lists import LISTS, ParameterList, accesses, parameters, tensors_held  # noqa: E402
from bench.optimizers import NOT_RACED, RULES  # noqa: E402
from bench.providers import (  # noqa: E402
    LOW_PRECISION,
    NOT_ON_CPUS,
    NOT_ON_GPUS,
    OURS,
    OURS_CAPTURABLE,
    OURS_REFERENCE,
    OURS_TRITON,
    Entry,
    by_torch,
)
from fusedstep import rules  # noqa: E402


def public_optimizers():
    for package in (fusedstep.optim, fusedstep.hf):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer):
                yield f"{package.__name__}.{name}"


def test_every_optimizer_of_the_package_is_raced_or_has_a_reason():
    raced = {entry.ours for entry in RULES.values()}
    everyone = set(public_optimizers())
    forgotten = everyone - raced - set(NOT_RACED)
    assert not forgotten, (
        f"the bench does not know {', '.join(sorted(forgotten))}: give each an entry in RULES of "
        "bench/optimizers.py, or a reason in NOT_RACED"
    )
    assert raced | set(NOT_RACED) <= everyone, "bench/optimizers.py has a class that is not public"
    assert not raced & set(NOT_RACED), "bench/optimizers.py lists one as raced and as not raced"


@pytest.mark.parametrize("name", RULES)
def test_an_entry_says_which_rule_steps_and_what_ours_takes(name):
    entry = RULES[name]
    shapes = ((3, 4), (5, 1) if entry.only_matrices else (5,))
    values = ParameterList("both", shapes).tensors(torch.float32)
    optimizer = entry.providers[OURS](parameters(values))
    optimizer.step()
    stepped_by = {bucket.rule.name for bucket in optimizer._plan.buckets}
    assert stepped_by == {entry.rule}, f"{name}: `rule` in bench/optimizers.py is not what steps"
    module, _, own_name = entry.ours.rpartition(".")
    arguments = inspect.signature(getattr(import_module(module), own_name)).parameters
    assert entry.capturable == ("capturable" in arguments), f"{name}: `capturable` is wrong"


def test_labels_and_names_of_trainings_differ():
    labels = [entry.label for entry in RULES.values()]
    trained = [entry.training.name or name for name, entry in RULES.items() if entry.training]
    assert len(set(labels)) == len(labels) and len(set(trained)) == len(trained)


@pytest.mark.parametrize(("rule", "moved", "held"), [
    ("accumulate", (3, 3), (2, 2)),  # p g -> p
    ("adamw", (7, 7), (4, 4)),  # p g m v -> p m v
    ("adamw_amsgrad", (9, 9), (5, 5)),
    ("adafactor", (3, 5), (2, 3)),  # p g -> p; of a vector p g v -> p v
    ("adafactor_momentum", (5, 7), (3, 4)),
])  # fmt: skip
def test_floors_follow_from_the_states_of_the_rule(rule, moved, held):
    assert accesses(rules.RULES[rule]) == moved
    assert tensors_held(rules.RULES[rule]) == held
    mixed = ParameterList("mixed", ((10, 2), (7,)))
    assert mixed.floor_bytes(rule, torch.bfloat16) == 2 * (20 * moved[0] + 7 * moved[1])
    assert mixed.held_bytes(rule, torch.float32) == 4 * (20 * held[0] + 7 * held[1])


def test_who_is_raced_on_which_list():
    adamw, trainer, defaults = "adamw", "adafactor-hf-trainer", "adafactor-hf-defaults"
    lists = {
        ("10x8M", "tiny", "1e9", "2000 small"): (adamw,),
        ("68M", "small", "host", "llama-1b"): (adamw, trainer, defaults),
        ("t5-small", "gpt2", "vit-b", "llama-7b, 1 layer", "512 experts", "lora"): (adamw, trainer),
        ("t5-xl", "4096x4096", "32768x8192", "16384x16384"): (trainer, defaults),
        ("8 matrices", "32 matrices", "64 matrices"): ("muon",),
    }
    assert {name for names in lists for name in names} == set(LISTS)
    for names, racing in lists.items():
        for name in names:
            raced = [
                rule
                for rule in (adamw, trainer, defaults, "muon")
                if RULES[rule].races_on(LISTS[name])
            ]
            assert tuple(raced) == racing, name


@pytest.fixture
def new_entry(monkeypatch):
    """A new optimizer in the table, with the step of AdamW."""
    peers = by_torch("AdamW", "torch-fused", "torch-plain")
    entry = Entry(
        "New", "adamw", "fusedstep.optim.AdamW", peers, settings={"lr": 0.5}, capturable=True
    )
    monkeypatch.setitem(RULES, "new", entry)
    return entry


def test_one_entry_has_all_providers_with_the_same_settings(new_entry):
    ours = [OURS, OURS_TRITON, OURS_CAPTURABLE]
    peers = ["torch-fused", "torch-plain"]
    assert list(new_entry.providers) == [*ours, *peers, *LOW_PRECISION, OURS_REFERENCE]
    assert all(build.settings["lr"] == 0.5 for build in new_entry.providers.values())
    assert new_entry.providers["torch-plain"].settings == {"lr": 0.5, "foreach": False}
    assert new_entry.providers[OURS_REFERENCE].settings["backend"] == "reference"
    assert not NOT_ON_CPUS & set(new_entry.providers_on("cpu"))
    assert not NOT_ON_GPUS & set(new_entry.providers_on("cuda"))


def test_one_entry_is_raced_shown_and_trained(new_entry, monkeypatch, tmp_path):
    monkeypatch.setattr(step, "copy_bandwidth", lambda *_: (1e10, False))
    monkeypatch.setattr(race, "one_by_one", lambda work, arguments, _: work(*arguments))
    words = ["--rules", "new", "--lists", "host", "--rounds", "1", "--out", str(tmp_path / "a")]
    monkeypatch.setattr(sys, "argv", ["bench.step", *words, "--providers", OURS, "torch-fused"])
    assert step.main() == 0
    rows = json.loads((tmp_path / "a" / "step.json").read_text())["rows"]
    assert [(row["rule"], row["provider"]) for row in rows] == [
        ("new", OURS), ("new", "torch-fused")
    ]  # fmt: skip
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert "| New | 1200 x 1, fp32 | " in readme.step()
    pair = contestants.pairs()["new"]
    assert pair.made_by("ours") == "fusedstep.optim.AdamW"
    assert pair.made_by("peer") == "torch.optim.AdamW" and pair.peer.settings["fused"]
