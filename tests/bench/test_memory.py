"""`python -m bench.memory`: the allocations it counts, numbers known in advance, and its files."""

import json
import sys

import pytest
import torch

from bench import memory
from bench.allocations import Allocations, scratch_bytes, state_bytes
from bench.lists import ParameterList
from bench.memory import Use, measure, parameters
from bench.optimizers import RULES
from bench.providers import OURS

SHAPES = ((300, 200), (40, 30), (500,))
ELEMENTS = 300 * 200 + 40 * 30 + 500
FACTORS = 300 + 200 + 40 + 30 + 500
MIXED = ParameterList("mixed", SHAPES)
STEP = 4  # bytes of a counter or an RMS; each tensor has one


def use_of(rule, name, dtype=torch.float32):
    return measure(RULES[rule].providers[name], parameters(MIXED, dtype, "cpu"), "cpu")


def test_allocations_are_counted_exactly():
    with Allocations("cpu") as seen:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        third = torch.empty(100)
    assert (seen.left, seen.most) == (4 * 600, 4 * 1500)
    with Allocations("cpu") as seen:  # memory is only freed
        del second
        third = torch.empty(100)
    assert (seen.left, seen.most) == (-4 * 500, 0)
    with Allocations("cpu") as seen:
        third = torch.empty(100)  # it replaces the old one
    assert (seen.left, seen.most) == (0, third.nbytes)


@pytest.mark.parametrize(("rule", "name", "dtype", "bytes_of_state"), [
    ("adamw", OURS, torch.float32, 8 * ELEMENTS + 3 * STEP),
    ("adamw", "torch-fused", torch.float32, 8 * ELEMENTS + 3 * STEP),
    ("adamw", "torch-foreach", torch.bfloat16, 4 * ELEMENTS + 3 * STEP),
    ("adafactor-hf-trainer", OURS, torch.bfloat16, 4 * FACTORS + 3 * STEP),
    ("adafactor-hf-trainer", "transformers", torch.float32, 4 * FACTORS + 3 * STEP),
    ("adafactor-torch", OURS, torch.float32, 4 * FACTORS + 3 * STEP),
    ("adafactor-torch", "torch-foreach", torch.bfloat16, 2 * FACTORS + 3 * STEP),
], ids=str)  # fmt: skip
def test_states_have_the_bytes_that_the_rule_says(rule, name, dtype, bytes_of_state):
    use = use_of(rule, name, dtype)
    assert use.state == bytes_of_state
    if name != OURS:
        assert use.kept == 0


IN_BLOCKS = ParameterList("blocks", ((300, 256), (40, 128)))


@pytest.mark.parametrize(("rule", "name", "bytes_a_parameter"), [
    ("adamw", OURS, 8.0),
    ("adamw", "fusedstep-noise", 8.0),
    ("adamw", "fusedstep-rest16", 14.0),
    ("adamw", "fusedstep-rest16-bf16-states", 10.0),
    ("adamw", "fusedstep-int8-states", 6.0 + 8 / 128),
    ("adamw", "fusedstep-rest8-int8-states", 7.0 + 8 / 128),
], ids=str)  # fmt: skip
def test_bytes_of_low_precision(rule, name, bytes_a_parameter):
    """Of parameter, gradient and states."""
    params = parameters(IN_BLOCKS, torch.bfloat16, "cpu")
    use = measure(RULES[rule].providers[name], params, "cpu")
    n = IN_BLOCKS.elements
    assert use.state + use.held == bytes_a_parameter * n + len(params) * STEP


def test_bytes_of_low_precision_of_adafactor():
    held = {}
    for name in (OURS, "fusedstep-rest16", "fusedstep-rest8"):
        params = parameters(IN_BLOCKS, torch.bfloat16, "cpu")
        use = measure(RULES["adafactor-hf-trainer"].providers[name], params, "cpu")
        held[name] = (use.state + use.held) / IN_BLOCKS.elements
    assert held["fusedstep-rest16"] - held[OURS] == pytest.approx(2.0)
    assert held["fusedstep-rest8"] - held[OURS] == pytest.approx(1.0)


def test_views_of_one_storage_count_once_and_inner_tensors_count():
    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, codes, scale):
            own = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
            own.codes, own.scale = codes, scale
            return own

        def __tensor_flatten__(self):
            return ["codes", "scale"], None

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise NotImplementedError(func)

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))])
    flat = torch.zeros(10)
    optimizer.state["a"] = {"step": flat[0], "exp_avg": flat[1:], "count": 3}
    optimizer.state["b"] = {"codes": Wrapper(torch.zeros(8, dtype=torch.uint8), torch.ones(1))}
    assert state_bytes(optimizer, "cpu") == 40 + 8 + 4
    assert state_bytes(optimizer, "cuda") == 0


# Those that multiply matrices keep more: see the next test.
@pytest.mark.parametrize("rule", [rule for rule in RULES if not RULES[rule].only_matrices])
def test_ours_keep_their_scratch_and_take_next_to_nothing_in_a_step(rule):
    params = parameters(ParameterList("", ((2048, 1024),)), torch.float32, "cpu")
    size = sum(param.nbytes for param in params)
    use = measure(RULES[rule].providers[OURS], params, "cpu")
    optimizer = RULES[rule].providers[OURS](params)
    optimizer.step()
    scratch = scratch_bytes(optimizer)
    assert scratch <= use.kept <= scratch + 1024  # scratch and a table
    assert use.peak <= 1024
    assert (scratch > 0) == rule.startswith("adafactor")
    assert use.kept + use.peak < 0.02 * size


def test_muon_keeps_a_batch_of_bfloat16_and_its_products_are_few():
    params = parameters(ParameterList("", ((256, 1024),) * 8), torch.float32, "cpu")
    elements = sum(param.numel() for param in params)
    use = measure(RULES["muon"].providers[OURS], params, "cpu")
    assert 2 * elements <= use.kept <= 2 * elements + 8192  # u, and two tables
    # x and x / norm, or x and the next x, in bfloat16; products of rows are a quarter of them here.
    assert use.peak <= 2 * (2 + 2 + 1) * elements


def test_a_temporary_of_a_peer_is_seen():
    use = use_of("adamw", "torch-foreach")  # roots of all second moments at once
    assert 4 * ELEMENTS <= use.peak <= 4 * ELEMENTS + 100


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command in this process. Returns its status and the file that it wrote."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")

    def command(chosen, *words):
        monkeypatch.setitem(memory.LISTS, chosen.name, chosen)
        words = ("memory", "--out", str(tmp_path), "--lists", chosen.name, *words)
        monkeypatch.setattr(sys, "argv", list(words))
        status = memory.main()
        return status, json.loads((tmp_path / "memory.json").read_text())

    return command


@pytest.mark.slow
def test_the_kernel_confirms_the_sum_on_a_large_list(run, monkeypatch, tmp_path):
    """Everything that a provider allocates is seen, by torch and by us."""
    monkeypatch.setattr(memory, "PARAMETER_DTYPES", ("bfloat16",))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # kernels may count each core's pages late
    large = ParameterList("large", ((2048, 1024),) * 24)
    rules = ("--rules", "adamw", "--providers", OURS, "torch-foreach")
    status, written = run(large, *rules)
    assert status == 0 and not written["interrupted"]
    for row, expected in zip(written["rows"], (4, 6), strict=True):
        found = row["bytes_a_parameter"]
        assert found["sum"] == pytest.approx(expected, abs=0.01)
        assert found["resident"] == pytest.approx(found["sum"], abs=memory.RESIDENT_ERROR)
    page = (tmp_path / "memory.md").read_text()
    assert "| adamw | large | bfloat16 | torch-foreach | 4.000 | 0.000 | 2.000 | 6.000 |" in page
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_a_provider_that_fails_is_a_row_with_its_reason(run, monkeypatch):
    monkeypatch.setattr(memory, "PARAMETER_DTYPES", ("float32",))
    monkeypatch.setattr(memory, "one_by_one", lambda work, arguments, limit: work(*arguments))
    monkeypatch.setenv("FUSEDSTEP_BACKEND", "cuda")  # which cannot step on CPU tensors
    status, written = run(MIXED, "--rules", "adamw", "--providers", OURS, "torch-fused")
    assert status == 1
    ours, peer = written["rows"]
    assert (ours["provider"], ours["use"]) == (OURS, None) and "cuda" in ours["note"]
    assert (peer["provider"], peer["note"]) == ("torch-fused", "")
    assert peer["bytes_a_parameter"]["state"] == 8 + 3 * STEP / ELEMENTS


def test_an_interrupted_run_keeps_the_rows_that_are_finished(run, monkeypatch):
    def interrupted(races, device):
        use = Use(8 * ELEMENTS, 0, 0, 8 * ELEMENTS)
        yield memory.MemoryRow("adamw", "mixed", "float32", OURS, ELEMENTS, use)
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "rows_of", interrupted)
    status, written = run(MIXED, "--rules", "adamw")
    assert status == 130 and written["interrupted"]
    assert [row["bytes_a_parameter"]["sum"] for row in written["rows"]] == [8.0]


@pytest.mark.parametrize(("option", "word"), [
    ("--rules", "adamv"), ("--providers", "torch-fuse"), ("--device", "gpu"), ("--lists", "69M"),
])  # fmt: skip
def test_an_unknown_name_is_an_error_with_the_choices(run, capsys, option, word):
    with pytest.raises(SystemExit) as stopped:
        run(MIXED, option, word)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert word in said and "choose from" in said
