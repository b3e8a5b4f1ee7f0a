"""torch's own test cases: for each of its optimizers every set of options that torch tests, and
every input that must be an error, with the words that torch's tests look for."""

import re
import warnings

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import fusedstep.optim

# LBFGS calls a closure many times: there is none of ours.
INFOS = [info for info in optim_db if hasattr(fusedstep.optim, info.optim_cls.__name__)]
NAMES = [info.optim_cls.__name__ for info in INFOS]
OPTIONS = [(info, case) for info in INFOS for case in info.optim_inputs_func("cpu")]
ERRORS = [(i, case) for i in INFOS for case in i.optim_error_inputs_func("cpu", torch.float32)]


def ours(info):
    return getattr(fusedstep.optim, info.optim_cls.__name__)


def name(value):
    return value.optim_cls.__name__ if hasattr(value, "optim_cls") else None


def parameters(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 4), (3, 6)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def set_gradients(params, seed, sparse):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        numbers = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = numbers.to_sparse(1) if sparse else numbers


def steps(make, dtype, kwargs, sparse):
    params = parameters(dtype)
    optimizer = make(params, **kwargs)
    for seed in range(4):
        set_gradients(params, seed, sparse)
        optimizer.step()
    return params


def test_every_optimizer_of_torch_is_tested():
    assert {"Adam", "AdamW", "Adafactor", "SGD", "RMSprop", "SparseAdam"} <= set(NAMES)
    assert len(OPTIONS) > 60 and len(ERRORS) > 80


@pytest.mark.parametrize(("info", "case"), OPTIONS, ids=name)
def test_options_give_torchs_results(info, case):
    """Towards float64 at most twice torch's error, and a unit in the last place."""
    sparse = info.optim_cls is torch.optim.SparseAdam
    found = steps(ours(info), torch.float32, case.kwargs, sparse)
    peers = steps(info.optim_cls, torch.float32, case.kwargs, sparse)
    exact = steps(info.optim_cls, torch.float64, case.kwargs, sparse)
    for own, peer, right in zip(found, peers, exact, strict=True):
        error, allowed = (own.double() - right).abs().max(), (peer.double() - right).abs().max()
        assert error <= 2 * allowed + torch.finfo(torch.float32).eps * right.abs().max()


@pytest.mark.parametrize(("info", "case"), ERRORS, ids=name)
def test_errors_are_torchs(info, case):
    given = case.optimizer_error_input
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if case.error_on == OptimizerErrorEnum.STEP_ERROR:
            optimizer = ours(info)(given.params, **given.kwargs)
            with pytest.raises(case.error_type, match=case.error_regex):
                optimizer.step()
        elif issubclass(case.error_type, Warning):
            ours(info)(given.params, **given.kwargs)
            assert any(re.search(case.error_regex, str(own.message)) for own in seen)
        else:
            with pytest.raises(case.error_type, match=case.error_regex):
                ours(info)(given.params, **given.kwargs)
