"""The benchmark's code for GPUs, tested without one: when the cache is flushed, which races share a
process, what counts as a launch."""

import collections
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import record_function

from bench import extra, kernels, race, step
from bench.apart import Failed
from bench.clock import Outcome, take_turns
from bench.devices import DEVICES, NEAR_CACHE, Cuda, Sample
from bench.lists import LISTS
from bench.optimizers import RULES
from bench.providers import OURS, OURS_TRITON, Race
from bench.table import cut_note, rows_of

L2 = 1000


@pytest.fixture
def cuda(monkeypatch):
    """The device with a fake cache size."""
    device = Cuda()
    monkeypatch.setattr(device, "_l2_bytes", lambda: L2)
    return device


def races(*names):
    return [Race("adamw", LISTS[name], "float32", (OURS, "torch-fused")) for name in names]


def test_a_list_is_said_to_be_flushed_exactly_if_it_is(cuda, monkeypatch):
    zeros, empty = torch.zeros, torch.empty
    monkeypatch.setattr(torch, "zeros", lambda size, device: zeros(size))
    monkeypatch.setattr(torch, "empty", lambda size, device: empty(size))
    flushed = {}
    for held in (1, L2, NEAR_CACHE * L2, NEAR_CACHE * L2 + 1):
        for host_bound in (False, True):
            cuda.prepare(held, host_bound)
            flushed[held, host_bound] = cuda.flush is not None
            assert cuda.cache_note(held, host_bound) == ("L2 flushed" if cuda.flush else "")
    assert [case for case, cold in flushed.items() if cold] == [
        (held, False) for held in (1, L2, NEAR_CACHE * L2)
    ]


def test_the_flush_reads_twice_the_cache(cuda, monkeypatch):
    zeros, empty = torch.zeros, torch.empty
    monkeypatch.setattr(torch, "zeros", lambda size, device: zeros(size))
    monkeypatch.setattr(torch, "empty", lambda size, device: empty(size))
    cuda.prepare(1, False)
    (values, _), result = cuda.flush.args, cuda.flush.keywords["out"]
    assert values.nbytes == 2 * L2
    values.fill_(1.0)
    assert cuda.flush() is result and result == values.numel()


class FakeProcesses:
    """Stands for the processes, and records which races each one got. Lists in `ending` kill it at
    once, and those in `breaking` leave it unusable."""

    def __init__(self, ending, breaking, dying=""):
        self.ending, self.breaking, self.dying, self.started = ending, breaking, dying, []

    def __call__(self, work, arguments, limit):
        titled, _ = arguments
        self.started.append([own.chosen.name for _, own in titled])
        for _, own in titled:
            if own.chosen.name == self.ending:
                raise Failed("failed: its process ended with status -11")
            yield Outcome({name: [1e-3] for name in own.names})
            if own.chosen.name == self.dying:
                raise Failed("failed: its process ended with status 3")
            yield own.chosen.name != self.breaking


@pytest.mark.parametrize(("kind", "started"), [
    ("cpu", [["host"], ["small"], ["tiny"], ["lora"]]),
    ("cuda", [["host", "small", "tiny", "lora"], ["tiny", "lora"], ["lora"]]),
])  # fmt: skip
def test_races_on_a_gpu_share_a_process_until_one_breaks_it(monkeypatch, kind, started):
    processes = FakeProcesses("small", "tiny")
    monkeypatch.setattr(race, "one_by_one", processes)
    options = race.Options(None, 1.0, None, kind)
    titled = [("", own) for own in races("host", "small", "tiny", "lora")]
    found = list(race.run_apart(titled, options))
    assert processes.started == started
    assert [bool(outcome.seconds) for outcome in found] == [True, False, True, True]
    assert set(found[1].failures.values()) == {"failed: its process ended with status -11"}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("dying", ["small", "lora"])
def test_no_race_is_blamed_for_a_process_that_dies_after_one(monkeypatch, kind, dying):
    monkeypatch.setattr(race, "one_by_one", FakeProcesses("", "", dying))
    titled = [("", own) for own in races("host", "small", "tiny", "lora")]
    found = list(race.run_apart(titled, race.Options(None, 1.0, None, kind)))
    assert [bool(outcome.seconds) for outcome in found] == [True] * 4


def test_a_process_that_a_kernel_has_broken_races_no_more(monkeypatch):
    left = iter([None, RuntimeError("an illegal memory access was encountered"), None])

    def release_memory():
        if error := next(left):
            raise error

    monkeypatch.setattr(race, "run", lambda own, *_: own.chosen.name)
    monkeypatch.setattr(DEVICES["cuda"], "release_memory", release_memory)
    options = race.Options(None, 1.0, None, "cuda")
    titled = [("", own) for own in races("host", "small", "tiny")]
    assert list(race.outcomes(titled, options)) == ["host", True, "small", False]


def test_launches_are_counted_when_all_is_timed(monkeypatch, tmp_path):
    """On a GPU a second process counts them. Only its counts are used."""
    seen = []

    def one_by_one(work, arguments, limit):
        titled, options = arguments
        for _, own in titled:
            seen.append((options.extras, options.rounds, own.chosen.name))
            counts = dict.fromkeys(own.names, 7) if options.extras else {}
            timed = 1e-3 if options.rounds != 0 else 9e9
            yield Outcome({name: [timed] for name in own.names}, launches=counts)
            yield True

    device = DEVICES["cuda"]
    monkeypatch.setattr(race, "one_by_one", one_by_one)
    monkeypatch.setattr(step, "copy_bandwidth", lambda *_: (1e10, False))
    fakes = {"why_absent": lambda: "", "release_memory": lambda: None, "_l2_bytes": lambda: L2,
             "facts": lambda: {"gpu": "G"}, "title": lambda _: "a GPU"}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(device, name, fake)
    words = ["--device", "cuda", "--rules", "adamw", "--lists", "host", "small"]
    words += ["--dtypes", "float32", "--providers", OURS, "torch-fused", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench.step", *words])
    assert step.main() == 0
    assert seen == [(False, None, "host"), (False, None, "small"), (True, 0, "host"),
                    (True, 0, "small")]  # fmt: skip
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [(row["ms"], row["launches"]) for row in rows] == 4 * [(1.0, 7)]
    assert "CUT SHORT" not in (tmp_path / "step.md").read_text()


def test_no_round_is_timed_where_only_launches_are_counted():
    device = SimpleNamespace(sample=lambda step, repeats: Sample(step()), watch=None)
    outcome = take_turns({"a": lambda: 1.0}, 0, 1.0, device, lambda *_: None)
    assert outcome.seconds == {"a": []} and not outcome.failures


def test_what_is_cut_last_is_the_least_of_every_rule():
    asked = SimpleNamespace(
        device="cuda", rules=list(RULES), providers=[OURS], lists=None, dtypes=None, quick=False
    )
    found = step.races_on(DEVICES["cuda"], asked)
    lists = [own.chosen.name for own in found]
    assert lists == sorted(lists, key=Cuda.lists.index) and set(lists) == set(Cuda.lists)
    assert {own.rule for own in found[: len(found) // 3]} == set(RULES)


def test_a_table_that_was_cut_says_what_is_missing():
    every = races("host", "small", "tiny")
    counted = Outcome({OURS: [1e-3]}, launches={OURS: 1})
    found = {own: rows_of(own, counted, 1e10, DEVICES["cpu"]) for own in every}
    assert cut_note(every, found) == ""
    found[every[0]] = rows_of(every[0], Outcome({OURS: [1e-3]}), 1e10, DEVICES["cpu"])
    del found[every[1]]
    assert cut_note(every, found) == (
        "CUT SHORT: 1 of 3 races are missing: adamw small float32. "
        "Launches and memory of 1 of 3 races were not counted."
    )


def an_event(name, device=DeviceType.CUDA, annotation=False, start=0):
    return SimpleNamespace(
        start_ns=lambda: start,
        name=lambda: name,
        device_type=lambda: device,
        is_user_annotation=lambda: annotation,
        duration_ns=lambda: 5000,
    )


EVENTS = [
    an_event("a kernel", start=1000),
    an_event("a kernel", start=2000),  # it starts before the other one has ended
    an_event("Memcpy HtoD (Pinned -> Device)", start=30_000),
    an_event("Memset (Device)", start=20_000),
    an_event("cudaLaunchKernel", DeviceType.CPU),
    an_event("Optimizer.step#AdamW.step", annotation=True),
]


class FakeProfile:
    def __init__(self, activities):
        results = SimpleNamespace(events=lambda: EVENTS)
        self.profiler = SimpleNamespace(kineto_results=results)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_ranges_that_torch_names_on_the_device_are_no_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(extra, "profile", FakeProfile)
    assert extra.launches(lambda: None, "cuda") == 2


def test_kernels_are_told_apart_by_name_in_microseconds_of_a_step(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(kernels, "profile", FakeProfile)
    monkeypatch.setattr(kernels, "parameters", lambda _: [torch.nn.Parameter(torch.ones(2))])
    nothing = SimpleNamespace(tensors=lambda *_: [])
    found = kernels.kernels_of("adamw", "torch-foreach", "float32", nothing)
    assert found.busy == pytest.approx((6.0 + 5.0 + 5.0) / kernels.STEPS)
    assert found.kernels == {
        "a kernel": 2 * 5.0 / kernels.STEPS,
        "Memcpy HtoD (Pinned -> Device)": 5.0 / kernels.STEPS,
        "Memset (Device)": 5.0 / kernels.STEPS,
    }


def test_a_backend_that_cannot_compile_leaves_the_others_their_kernels(monkeypatch, capsys):
    class CompilationError(Exception):
        pass

    def kernels_of(rule, provider, *_):
        if provider == OURS_TRITON:
            raise CompilationError("no such operator")
        return kernels.Spent(4.0, collections.Counter({"a kernel": 5.0}))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "kernels_of", kernels_of)
    monkeypatch.setattr(sys, "argv", ["kernels"])
    assert kernels.main() == 0
    said = capsys.readouterr().out
    assert said.count("failed: no such operator") == said.count("5.0 us") == len(kernels.RUNS)


def test_a_profilers_own_records_have_what_is_asked_of_them():
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as seen, record_function("a range"):
        torch.ones(3).add_(1)
    assert list(extra.on_device(seen)) == []
    events = {event.name(): event for event in seen.profiler.kineto_results.events()}
    assert events["a range"].is_user_annotation() and events["a range"].duration_ns() > 0
    assert not events["aten::add_"].is_user_annotation()
