"""The floor of a race on a CPU: its bare kernel moves exactly the bytes of a step. And the share of
the floor in tables, results and README."""

import json
from dataclasses import replace

import pytest
import torch

from bench import optimizers, race, readme, step
from bench.clock import Outcome
from bench.devices import DEVICES
from bench.floor import Floor
from bench.lists import DTYPES, LISTS, ParameterList
from bench.optimizers import HERE, RULES
from bench.plot import label
from bench.providers import OURS, Race, lazily
from bench.scaling_table import Curve
from bench.scaling_table import markdown as scaling_page
from bench.table import markdown, percent, rows_of, text
from fusedstep import native
from fusedstep.rules import RULES as PACKAGE_RULES

# Sizes around a cache line, a piece and its end; an empty tensor; a matrix of several pieces.
SHAPES = ((1,), (31,), (32,), (33,), (0,), (65_536,), (65_537,), (3, 7), (300, 701), (0, 5))
RACE = Race("adamw", LISTS["small"], "float32", (OURS, "torch-fused"))
CPU, GPU = DEVICES["cpu"], DEVICES["cuda"]


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def copies(floor):
    return [[bits(stream).clone() for stream in own] for own in floor.streams]


@pytest.fixture(params=native.module.levels())
def level(request):
    earlier = native.module.active_level()
    native.module.use_level(request.param)
    yield request.param
    native.module.use_level(earlier)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("rule", ["adamw", "adamw_amsgrad", "adafactor", "adafactor_momentum"])
def test_every_stream_is_read_and_all_but_the_gradient_are_written(level, rule, dtype):
    floor = Floor(ParameterList("some", SHAPES).tensors(dtype), rule)
    before = copies(floor)
    floor()
    for own, was in zip(copies(floor), before, strict=True):
        assert torch.equal(own[1], was[1])
        for slot in (0, *range(2, len(own))):
            assert torch.equal(own[slot], was[slot] ^ was[1])
            assert own[slot].numel() < 2 or not torch.equal(own[slot], was[slot])
    floor()
    for own, was in zip(copies(floor), before, strict=True):
        assert all(map(torch.equal, own, was))


def test_no_byte_beside_a_tensor_is_touched(level):
    whole = [(torch.full((n + 64,), 7.0), torch.full((n + 64,), 3.0)) for n in (1, 15, 17, 70_000)]
    floor = Floor([(value[32:-32], gradient[32:-32]) for value, gradient in whole], "adafactor")
    floor()
    for value, gradient in whole:
        assert (value[:32] == 7).all() and (value[-32:] == 7).all() and (value[32:-32] != 7).all()
        assert (gradient == 3).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_writes_the_same(threads):
    floor = Floor(LISTS["small"].tensors(torch.bfloat16), "adamw")
    before, earlier = copies(floor), torch.get_num_threads()
    torch.set_num_threads(threads)
    floor()
    torch.set_num_threads(earlier)
    for own, was in zip(copies(floor), before, strict=True):
        assert torch.equal(own[0], was[0] ^ was[1]) and torch.equal(own[1], was[1])


@pytest.mark.parametrize("rule", PACKAGE_RULES)
def test_the_floor_moves_the_fewest_bytes_of_the_rule(rule):
    chosen = ParameterList("some", SHAPES)
    for dtype in DTYPES.values():
        moved = Floor(chosen.tensors(dtype), rule).moved_bytes
        assert moved == chosen.floor_bytes(rule, dtype)


@pytest.mark.parametrize(("numbers", "said"), [
    ((3, 64, 1, 3), "item_bytes should be 2, 4 or 8 but is: 3"),
    ((4, 64, 1, 2), "fields should be from 3 to 7 but is: 2"),
    ((4, 64, 1, 8), "fields should be from 3 to 7 but is: 8"),
    ((4, 0, 1, 3), "no step can be taken under torch's FakeTensorMode"),
])  # fmt: skip
def test_numbers_that_the_floor_cannot_take_are_refused(numbers, said):
    with pytest.raises(ValueError, match=said):
        native.module.Floor(*numbers)


def test_tensors_that_cannot_be_walked_are_refused_by_name():
    good, wide = torch.ones(4, 4), torch.ones(4, 8)[:, ::2]
    for values, said in (
        ([(good, good), (wide, good)], r"parameter 1: its parameter is .* with strides \(8, 2\)"),
        ([(good, good.double())], "parameter 0: its gradient .* torch.float64 .* torch.float32"),
        ([(good, good[:2])], r"parameter 0: its gradient is \(2, 4\) .*, expected \(4, 4\)"),
        ([], "a floor needs at least one parameter"),
    ):
        with pytest.raises(ValueError, match=said):
            Floor(values, "adamw")


def test_the_share_is_the_median_of_paired_rounds():
    seconds = {OURS: [2e-3, 4e-3, 9e-3], "torch-fused": [4e-3, 4e-3, 4e-3]}
    outcome = Outcome(seconds, floor_seconds=[1e-3, 3e-3, 3e-3])
    ours, fused = rows_of(RACE, outcome, 1e10, CPU)
    assert (ours.floor_ms, ours.share_of_floor) == (3.0, 0.5)
    assert (fused.floor_ms, fused.share_of_floor) == (3.0, 0.75)
    shown = text([ours, fused])
    assert "of floor" in shown and "floor ms" in shown and "75%" in shown and "of copy" not in shown
    assert label(fused).endswith(" ms (1x), 75% of floor") and label(ours) == "4 ms, 50% of floor"
    assert [percent(share) for share in (None, 1.02, 0.1, 0.0123)] == ["-", "102%", "10%", "1.2%"]


def test_a_list_that_is_bound_by_the_host_has_a_floor_on_a_cpu_only(monkeypatch):
    monkeypatch.setattr(GPU, "cache_note", lambda *_: "")
    host = replace(RACE, chosen=LISTS["host"], names=(OURS,))
    outcome = Outcome({OURS: [1e-3]}, floor_seconds=[1e-5])
    assert rows_of(host, outcome, 1e10, CPU)[0].share_of_floor == pytest.approx(0.01)
    assert rows_of(host, Outcome({OURS: [1e-3]}), 1e10, GPU)[0].share_of_floor is None


def test_on_a_gpu_the_floor_is_copy_speed(monkeypatch):
    monkeypatch.setattr(GPU, "cache_note", lambda *_: "")
    chosen = RACE.chosen
    bytes_ = chosen.floor_bytes("adamw", torch.float32)
    rows = rows_of(RACE, Outcome({OURS: [4.0], "torch-fused": [2.0]}), bytes_ / 1.0, GPU)
    assert [(row.floor_ms, row.share_of_floor) for row in rows] == [(1000.0, 0.25), (1000.0, 0.5)]
    assert "same bytes at the speed of tensor.copy_" in markdown(rows, "", GPU)
    assert "bare kernel" in markdown(rows, "", CPU)


def run(rule, names, chosen="small"):
    options = race.Options(1, 0.0, None, "cpu", extras=True)
    progress = race.Progress("")
    return race.run(Race(rule, LISTS[chosen], "bfloat16", names), options, progress)


@pytest.mark.parametrize("rule", RULES)
def test_a_race_on_a_cpu_measures_its_floor_in_its_own_rounds(rule):
    outcome = run(rule, (OURS,), "64 matrices" if RULES[rule].only_matrices else "small")
    assert len(outcome.floor_seconds) == len(outcome.seconds[OURS]) >= 1
    assert set(outcome.seconds) == set(outcome.launches) == {OURS} and not outcome.failures


def test_without_the_module_there_is_no_floor_and_the_rows_say_why(monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "the C++ module is not built")
    outcome = run("adamw", ("torch-fused",), "host")
    (row,) = rows_of(replace(RACE, names=("torch-fused",)), outcome, 1e10, CPU)
    assert row.ms and row.floor_ms is None and row.share_of_floor is None
    assert row.note.endswith("no floor: failed: RuntimeError: the C++ module is not built")
    assert "of floor" not in text([row])


def test_the_page_of_scaling_shows_the_measured_floor_or_none():
    curve = Curve("adamw", "elements", "float32", (OURS,), (16, 64))
    outcomes = {16: Outcome({OURS: [1e-3]}, floor_seconds=[5e-4]), 64: Outcome()}
    rows = {size: rows_of(curve.race(size), own, 1e10, CPU) for size, own in outcomes.items()}
    page = scaling_page({curve: rows}, "", CPU.floor_is)
    assert "| 16 | 0.5 | 1 |" in page and "| 64 | - | - |" in page and CPU.floor_is in page


@pytest.fixture
def results(monkeypatch, tmp_path):
    """Puts results of one row into bench/results. Returns what README's generator makes of them."""
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    facts = {name: "x" for name in ("cpu", "cores", "threads", "torch", "transformers", "commit")}
    facts |= {"command": "c", "date": "2026-01-01 00:00 UTC"}

    def written(row, **more):
        row = {
            "rule": "adamw",
            "list": "68M",
            "dtype": "float16",
            "provider": OURS,
            "ms": 2.0,
        } | row
        (tmp_path / "a").mkdir()
        for name in ("step", "scaling"):
            file = tmp_path / "a" / f"{name}.json"
            file.write_text(json.dumps(
                {"environment": facts, "interrupted": False, "rows": [row]} | more
            ))  # fmt: skip
        return readme.step(), readme.scaling()

    return written


def test_readme_shows_the_share_of_results_that_have_it(results):
    table, scaling = results({"share_of_floor": 0.5}, floor="the time of something")
    assert "| rule | list | fusedstep | of floor |" in table
    assert "68M in 11 matrices, fp16 | 2 ms | 50% |" in table
    assert "The floor is the time of something." in table
    assert "the floor: the time of something." in scaling


def test_readme_shows_older_results_as_they_were(results):
    table, scaling = results({"share_of_copy": 1.5})
    assert table.endswith(
        "| rule | list | fusedstep |\n| --- | --- | --- |\n"
        "| AdamW | 68M in 11 matrices, fp16 | 2 ms |\n"
    )
    assert "the floor: the same bytes at copy speed." in scaling


def asked(*words):
    return step.command_options("step", None, HERE).parse_args(words)


def test_absent_peers_are_named_in_one_line(monkeypatch):
    monkeypatch.setattr(step, "ABSENT", {"apex", "torchao", "adafactor8bit", "deepspeed-cpu"})
    assert step.absent_note(asked("--rules", "adamw")) == (
        "Not installed, so not raced: torchao, apex, deepspeed-cpu."
    )
    assert step.absent_note(asked("--rules", "adafactor-torch")) == ""
    assert step.absent_note(asked("--providers", OURS)) == ""  # nobody asked for more


def test_an_absent_peer_that_is_asked_for_is_a_row_with_the_reason(monkeypatch):
    nobody = lazily("no_such_package.optim", "AdamW")
    assert nobody.is_absent()
    monkeypatch.setitem(RULES["adamw"].providers, "torchao", nobody)
    outcome = run("adamw", (OURS, "torchao"), "host")
    assert outcome.failures == {"torchao": "no_such_package is not installed"}
    assert outcome.seconds[OURS] and outcome.floor_seconds


def test_every_rule_races_in_the_dtypes_of_16_bits():
    for words, found in (([], ["float32", "bfloat16"]), (["--dtypes", "float16"], ["float16"])):
        own = step.command_options("step", None, HERE)
        own.add_argument("--lists", nargs="+"), own.add_argument("--dtypes", nargs="+")
        given = own.parse_args(words)
        given.lists, given.quick = ["68M"], False
        races = step.races_on(CPU, given)
        racing = [name for name in RULES if RULES[name].races_on(LISTS["68M"])]
        assert [(r.rule, r.dtype) for r in races] == [(n, d) for n in racing for d in found]


def test_the_extra_of_peers_has_a_package_for_every_optional_peer():
    text = (readme.ROOT / "pyproject.toml").read_text()
    extra = text.partition("\npeers = [")[2].partition("\n]")[0].replace("-", "_")
    packages = {peer.module.split(".")[0] for r in RULES.values() for peer in r.peers.values()}
    left_out = {"torch", "transformers", "apex", "transformer_engine"}  # these two need CUDA
    assert all(name in extra for name in packages - left_out)
    assert optimizers.ABSENT <= {name for r in RULES.values() for name in r.peers}
