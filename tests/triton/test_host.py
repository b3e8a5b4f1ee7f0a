"""The host side of the Triton backend: its units of work, and where it runs. gpu/test_host.py tests
what both GPU backends share."""

import importlib.util
from collections import Counter

import pytest
import torch

pytest.importorskip("triton", minversion="3.4")

import fusedstep.backends.triton
import fusedstep.optim
from fusedstep import __main__, backends
from tests.support import recorded_triton
from tests.support.cases import CASES, each, make_params, set_grads
from tests.support.recorded_cuda import started

CASE = {case.name: case for case in CASES}
# A vector, a matrix, one of several blocks of rows, long rows, tiny matrices, an aligned matrix.
SHAPES = [(3,), (4, 5), (300, 33), (2, 2064), (40, 3, 3), (64, 64)]


@pytest.fixture
def launched(monkeypatch):
    return recorded_triton.register(monkeypatch)


def work(launched, params):
    """How often each kind of work is done on each unit of a parameter. Its shape is its name."""
    found = Counter()
    for kind, arguments in launched:
        addresses = {p.data_ptr(): tuple(p.shape) for p in params}
        for tensor, unit in arguments["entries" if kind else "chunks"].tolist():
            shape = addresses[arguments["table"][tensor, 0].item()]
            sizes = tuple(
                recorded_triton.constant(arguments, name) for name in ("WIDTH", "TILE", "ALIGNED")
            )
            found[kind, shape, unit, sizes] += 1
    return found


@each([CASE["adamw"], CASE["adafactor"], CASE["hf-adafactor-momentum"]])
def test_work_does_not_depend_on_the_order_of_parameters(case, launched):
    found = []
    for shapes in (SHAPES, SHAPES[::-1], SHAPES[3:] + SHAPES[:3]):
        launched.clear()
        _, params = started(case, shapes, backend="triton")
        found.append(work(launched, params))
        assert set(found[0].values()) == {1}
        assert found[-1] == found[0]


# Which backend runs where.


@pytest.fixture
def without_triton(monkeypatch):
    """Makes imports of Triton fail."""
    real, asked = importlib.util.find_spec, fusedstep.backends.triton.why_not_installed

    def take():
        asked.cache_clear()
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "triton" else real(name)
        )

    yield take
    asked.cache_clear()


def test_info_says_why_triton_is_absent(without_triton):
    assert "triton     absent: no GPU: torch finds no cuda and no xpu device" in __main__.info()
    without_triton()
    assert "triton     absent: Triton is not installed: install the one" in __main__.info()
    assert "cpu tensors: auto takes cpu" in __main__.info()
    assert "cuda tensors: auto takes reference" in __main__.info()


def test_auto_takes_triton_where_it_runs(monkeypatch):
    monkeypatch.setattr(backends.BACKENDS["cuda"], "why_absent", lambda: "not built")
    monkeypatch.setattr(fusedstep.backends.triton.TritonBackend, "why_absent", lambda self: "")
    names = [backends.choose("auto", torch.device(d), "").name for d in ("cpu", "cuda", "xpu")]
    assert names == ["cpu", "triton", "triton"]


def test_triton_refuses_a_parameter_on_the_cpu(monkeypatch):
    params = make_params([(4, 5)])
    optimizer = fusedstep.optim.AdamW([("fc.weight", params[0])], backend="triton")
    set_grads(params, 0)
    with pytest.raises(RuntimeError, match=r"backend='triton' is not available: no GPU"):
        optimizer.step()
    monkeypatch.setattr(fusedstep.backends.triton.TritonBackend, "why_absent", lambda self: "")
    with pytest.raises(RuntimeError, match=r"cuda, xpu, not parameter 0 .*'fc\.weight'.*'auto'"):
        optimizer.step()
    assert not any(optimizer.state.values())
