"""`python -m bench.sharded` and `python -m bench.cost`: what is counted is what our messages are by
their layout, and what the model predicts from."""

import json
import sys

import pytest
import torch

from bench import cost, sharded, sharded_ways
from bench.apart import Failed, in_processes
from bench.collectives import counted
from bench.cost import EACH, GATHER, ONE, TWO, Network, Prediction, messages, predict
from bench.lists import LLAMA_70B, ParameterList
from bench.providers import OURS
from bench.sharded_run import Found, ShardedRace, Way, measure, rows_of, together
from bench.sharded_ways import (
    ALGORITHM,
    OPERATORS,
    held_rows,
    prepared,
    sharded_parameters,
    transformer,
    ways_of,
)

# Uneven shards, one that is empty, a batch of matrices, vectors.
SHAPES = ((7, 33), (30, 26), (2, 5, 7), (3,), (1, 40), (40,))
CHOSEN = ParameterList("few", SHAPES)
PROCESSES = 2
CAPPED = "adafactor-torch"
RULES = ("adamw", ALGORITHM, CAPPED)


def race_of(rule, dtype="float32"):
    return ShardedRace(rule, CHOSEN, dtype, PROCESSES, tuple(ways_of(rule)))


def values(rule):
    """How far each way's parameters are from ours after two steps, relative to how far they
    moved."""
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    ways = ways_of(rule)
    found = {}
    for name in (OURS, sharded_ways.GATHER, OPERATORS):
        if name in ways:
            params = sharded_parameters(CHOSEN, "float32", mesh)
            _, step = prepared(name, ways[name], params)
            for _ in range(2):
                step()
            found[name] = [param.detach().full_tensor() for param in params]
    start = [value for value, _ in CHOSEN.tensors(torch.float32)]
    moved = [own - first for own, first in zip(found[OURS], start, strict=True)]
    return {
        name: max(
            float((other - own).norm() / way.norm())
            for other, own, way in zip(found[name], found[OURS], moved, strict=True)
        )
        for name in found
    }


def in_one_process(rank, meeting):
    with together(rank, meeting, PROCESSES):
        found = {rule: measure(race_of(rule), 1) for rule in RULES}
        low = measure(race_of(ALGORITHM, "bfloat16"), 1)
        return found, low, {rule: values(rule) for rule in RULES}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    meeting = str(tmp_path_factory.mktemp("sharded") / "meeting")
    return in_processes(in_one_process, [(rank, meeting) for rank in range(PROCESSES)], 300)


@pytest.mark.parametrize(("rule", "collectives"), [("adamw", 0), (ALGORITHM, 1), (CAPPED, 2)])
def test_our_messages_are_those_of_the_layout_and_of_the_model(results, rule, collectives):
    for found, _, _ in results:
        ours = found[rule].ways[OURS]
        assert ours.collectives == len(found[rule].messages) == collectives
        assert ours.bytes == 8 * sum(found[rule].messages)
        if rule != "adamw":
            assert found[rule].messages == messages(SHAPES, rule == CAPPED)


def test_the_messages_do_not_depend_on_the_dtype(results):
    found, low, _ = results[0]
    assert low.messages == found[ALGORITHM].messages
    assert low.ways[OURS].bytes == found[ALGORITHM].ways[OURS].bytes


def test_a_gather_brings_all_parameters_and_gradients_together(results):
    found, low, _ = results[0]
    # The first process holds most of every tensor, and the others send as much.
    each = 4 * 33 + 15 * 26 + 1 * 5 * 7 + 2 + 1 * 40 + 20
    for own, size in ((found["adamw"], 4), (low, 2)):
        assert own.ways[sharded_ways.GATHER].collectives == 2
        assert own.ways[sharded_ways.GATHER].bytes == 2 * PROCESSES * each * size


def test_operators_take_collectives_for_each_tensor(results):
    matrices, vectors = 4, 2
    found = results[0][0][ALGORITHM].ways[OPERATORS]
    assert found.collectives >= 2 * matrices + vectors


def test_peers_that_cannot_do_it_say_why(results):
    found = results[0][0]
    assert found[ALGORITHM].ways["transformers"].failure.startswith("failed: RuntimeError: ")
    assert found[CAPPED].ways["torch-foreach"].failure.startswith("failed: ")
    assert found["adamw"].ways["torch-foreach"].seconds
    row = next(
        row for row in rows_of(race_of(CAPPED), found[CAPPED]) if row.provider == "torch-foreach"
    )
    assert row.ms is None and row.note == found[CAPPED].ways["torch-foreach"].failure


@pytest.mark.parametrize("rule", RULES)
def test_all_ways_take_the_same_step(results, rule):
    for _, _, differences in results:
        apart = differences[rule]
        assert apart[sharded_ways.GATHER] <= (0.0 if rule == "adamw" else 2e-6)
        if rule == ALGORITHM:
            assert apart[OPERATORS] <= 1e-5  # they add up in float32


def test_a_step_without_processes_has_no_collective():
    param = torch.ones(3)
    found = counted(lambda: param.add_(1))
    assert (found.number, found.bytes) == (0, 0)


def test_rows_are_held_as_torch_splits_them():
    for rows in range(9):
        for processes in (1, 2, 3, 4):
            whole = torch.arange(rows)
            held = [whole[held_rows(rows, processes, rank)] for rank in range(processes)]
            assert torch.equal(torch.cat(held), whole)
            expected = whole.chunk(processes)
            for own, other in zip(held, expected, strict=False):
                assert torch.equal(own, other)


def test_the_transformer_has_the_tensors_of_a_gpt():
    chosen = transformer()
    assert (chosen.elements, len(chosen.shapes)) == (19_030_016, 100)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with races that are not run."""

    def command(found, *words):
        def without_processes(work, members, limit):
            if isinstance(found, Exception):
                raise found
            return [found] * len(members)

        monkeypatch.setattr(sharded, "in_processes", without_processes)
        monkeypatch.setattr(sys, "argv", ["sharded", "--out", str(tmp_path), *words])
        status = sharded.main()
        return status, json.loads((tmp_path / "sharded.json").read_text())

    return command


def test_the_command_keeps_a_table_numbers_and_a_picture(run, tmp_path):
    way = Way(seconds=[0.1, 0.2, 0.3], collectives=1, bytes=2_000_000)
    slow = Way(seconds=[0.2, 0.4, 0.9], collectives=2, bytes=8_000_000)
    found = Found({OURS: way, sharded_ways.GATHER: slow}, [250_000], disturbed=1)
    status, written = run(found, "--rules", ALGORITHM, "--dtypes", "float32", "--processes", "2")
    assert status == 0
    ours, other = written["rows"]
    assert (ours["ms"], ours["collectives"], ours["bytes"]) == (200.0, 1, 2_000_000)
    assert (other["ms"], other["ratio"], other["disturbed"]) == (400.0, 2.0, 1)
    assert list(written["numbers_in_our_messages"].values()) == [[250_000]]
    assert {"torch", "date", "command", "cpu"} <= set(written["environment"])
    assert "| 400.00 |" in (tmp_path / "sharded.md").read_text()
    assert (tmp_path / "sharded.png").read_bytes().startswith(b"\x89PNG")


def test_a_race_that_fails_says_so(run):
    status, written = run(Failed("failed: given up after 400 s"), "--rules", "adamw")
    assert status == 1
    assert {row["note"] for row in written["rows"]} == {"failed: given up after 400 s"}


def test_messages_of_a_matrix_a_vector_and_a_batch():
    assert messages([(3, 5)], False) == [1 + 2 * 5 + 1 + 1]
    assert messages([(7,)], True) == [1 + 1 + 1]
    assert messages([(3, 5), (7,), (2, 3, 5)], True) == [13 + 3 + 3, 2]


def test_the_model_is_bytes_over_bandwidth_and_latency():
    network = Network(node=8, inside=100.0, across=10.0, hop_inside=1.0, hop_across=5.0,
                      call=3.0, host=2.0)  # fmt: skip
    assert network.latency(8) == 5.0 + 2 * 7
    assert network.latency(32) == 5.0 + 2 * (7 + 2 * 5)
    assert network.all_reduce(400.0, 8) == network.latency(8) + 2 * 400 * 7 / 8 / 100
    assert network.all_gather(320.0, 32) == network.latency(32) + 320 * 31 / 32 / 10


def test_the_ways_differ_in_collectives_and_bytes():
    network = Network()
    found = {way: predict(way, 64, cost.CHOSEN, network) for way in cost.WAYS}
    tensors, elements = len(LLAMA_70B), cost.CHOSEN.elements
    assert (tensors, elements) == (723, 70_553_706_496)
    assert [found[way].collectives for way in cost.WAYS] == [1, 2, tensors, 1]
    assert found[GATHER].bytes == 2 * elements
    assert found[EACH].bytes == found[ONE].bytes < found[TWO].bytes < 1.01 * found[ONE].bytes
    assert found[ONE] == Prediction(ONE, 64, 1, 8 * messages(LLAMA_70B, False)[0],
                                    found[ONE].seconds)  # fmt: skip
    assert found[ONE].seconds < found[TWO].seconds < found[EACH].seconds < found[GATHER].seconds


def test_the_page_is_as_the_model_computes_it():
    text = (cost.RESULTS / "predicted-sharded.md").read_text()
    assert text == cost.page(Network()), "run python -m bench.cost"


def test_the_picture_says_that_it_is_a_prediction(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    titles = []
    real = Axes.set_title
    monkeypatch.setattr(
        Axes, "set_title", lambda *words, **more: titles.append(words[1]) or real(*words, **more)
    )
    assert cost.main(tmp_path) == 0
    assert (tmp_path / "predicted-sharded.png").read_bytes().startswith(b"\x89PNG")
    assert titles and titles[0].startswith("Prediction, not measured")
    assert "**Nothing is measured**" in (tmp_path / "predicted-sharded.md").read_text()


def test_the_numbers_of_the_documentation_are_those_of_the_model():
    text = " ".join((cost.RESULTS.parents[1] / "docs" / "distributed.md").read_text().split())
    one, each, gather = (predict(way, 64, cost.CHOSEN, Network()) for way in (ONE, EACH, GATHER))
    assert one.bytes / 1e6 == pytest.approx(99.9, abs=0.05) and "99.9 MB a step" in text
    assert f"Gradients in bfloat16 are {gather.bytes / 1e9:.0f} GB" in text
    seconds = f"{one.seconds * 1e3:.1f} ms, {each.seconds * 1e3:.0f} ms and {gather.seconds:.1f} s"
    assert f"At 50 GB/s and 64 GPUs that is {seconds}." in text
    assert f"computes {cost.COMPUTING:.1f} s on an H100" in text
