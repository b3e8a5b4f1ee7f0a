"""Every optimizer says which backend runs where, and why, before a step and after it."""

import pytest
import torch

from fusedstep import backends
from fusedstep.optim import AdamW
from tests.support.cases import CASES, each, make_params, set_grads


def params_with_grads(*devices):
    params = [torch.nn.Parameter(torch.zeros(3, device=device)) for device in devices]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


@each(CASES)
def test_before_and_after_a_step(case):
    params = make_params([(3,), (4, 3)])
    optimizer = case.make(params, backend="reference")
    (before,) = optimizer.backends()
    set_grads(params, 0)
    optimizer.step()
    (after,) = optimizer.backends()
    assert str(before) == "reference would run on cpu (2 parameters): backend='reference'"
    assert str(after) == "reference runs on cpu (2 parameters): backend='reference'"
    assert repr(optimizer).endswith(f")\n{after}")


def test_auto_says_why_a_faster_backend_is_absent(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    optimizer = AdamW(params_with_grads("cpu", "meta", "cpu"))
    monkeypatch.setattr(backends.BACKENDS["cpu"], "why_absent", lambda: "no compiler")
    for name in ("cuda", "triton"):
        monkeypatch.setattr(backends.BACKENDS[name], "devices", lambda: ("cuda",))
    cpu, meta = optimizer.backends()
    assert str(cpu) == "reference would run on cpu (2 parameters): auto; cpu: no compiler"
    assert (meta.backend, meta.parameters) == ("", 1)
    assert str(meta).startswith("a step cannot run on meta (1 parameter): no backend updates")
    monkeypatch.setattr(backends.BACKENDS["cpu"], "why_absent", lambda: "")
    assert str(optimizer.backends()[0]) == "cpu would run on cpu (2 parameters): auto"


@pytest.mark.parametrize(("asked", "source"), [(None, "FUSEDSTEP_BACKEND"), ("cpu", "backend")])
def test_it_says_who_chose(asked, source, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "reference")
    (running,) = AdamW(params_with_grads("cpu"), backend=asked).backends()
    assert running.why == f"{source}={asked or 'reference'!r}"


def test_a_backend_that_is_absent_is_no_error_of_the_repr(monkeypatch):
    monkeypatch.setattr(backends.BACKENDS["cuda"], "why_absent", lambda: "no nvcc")
    said = repr(AdamW(params_with_grads("cpu"), backend="cuda")).splitlines()[-1]
    assert said == (
        "a step cannot run on cpu (1 parameter): backend='cuda' is not available: no nvcc"
    )


def test_a_new_group_counts_before_the_next_step():
    optimizer = AdamW(params_with_grads("cpu"))
    optimizer.step()
    optimizer.add_param_group({"params": params_with_grads("cpu")})
    (running,) = optimizer.backends()
    assert running.parameters == 2 and not running.has_run
