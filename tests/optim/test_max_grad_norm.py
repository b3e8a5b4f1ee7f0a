"""max_grad_norm: clipping inside the step. The oracle is torch.nn.utils.clip_grad_norm_, then a
step without the option."""

import math

import pytest
import torch

import fusedstep.optim
from tests.support.cases import DTYPES, assert_same, each, make_params, same_bits
from tests.support.clipping import gradients_of, norm
from tests.support.rule_cases import CASE_OF, once_a_rule
from tests.support.sweeps import sweep

ADAMW = fusedstep.optim.AdamW
F32, BF16, F16, F64 = DTYPES
SHAPES = [(), (7,), (0,), (1025,), (33, 17), (9, 1030), (3, 5, 7), (270, 260)]
LONG = [(70001,), (3,), (0,), (200001,), (2, 270, 260)]
BACKENDS = ["cpu", "reference"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@once_a_rule
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_a_step_is_torchs_clipping_and_then_a_step(case, dtype):
    """torch adds up squares in the gradient's dtype: in float32 this is off by 2e-6 here (AMD EPYC,
    2026-11-26). It also rounds the clipped gradients."""
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype is F32 else {"rtol": 1e-12, "atol": 1e-12}
    params, twins = make_params(SHAPES, dtype), make_params(SHAPES, dtype)
    optimizer, plain = case.make(params, max_grad_norm=0.5), case.make(twins)
    for step in range(3):
        gradients_of(params, step), gradients_of(twins, step)
        total = torch.nn.utils.clip_grad_norm_(twins, 0.5)
        optimizer.step()
        plain.step()
        torch.testing.assert_close(optimizer.grad_norm, total.double(), **near)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, **near)


# With the default backend, and the slow one.
@once_a_rule
@pytest.mark.parametrize(
    ("dtype", "backend"),
    sweep([(d, b) for d in DTYPES for b in BACKENDS], [(BF16, "cpu"), (F16, "cpu")]),
    ids=str,
)
def test_a_step_has_the_bits_of_one_with_smaller_gradients(case, dtype, backend):
    """If the factor is a power of two, so that no product is rounded."""
    params, twins = make_params(SHAPES, dtype), make_params(SHAPES, dtype)
    optimizer, plain = case.make(params, backend=backend), case.make(twins, backend=backend)
    for step in range(2):
        # So large that float16 holds halves.
        grads, smaller = gradients_of(params, step, 64.0), gradients_of(twins, step, 64.0)
        optimizer.max_grad_norm = (norm(grads) + 1e-6) / 2
        for grad in smaller:
            grad /= 2
        before = [grad.clone() for grad in grads]
        optimizer.step()
        plain.step()
        assert_same(optimizer, params, plain, twins)
        assert all(map(same_bits, grads, before))


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each([CASE_OF["adamw"], CASE_OF["adafactor"]])
def test_the_norm_is_that_of_float64(case, dtype, backend):
    params = make_params(LONG, dtype)
    optimizer = case.make(params, max_grad_norm=1.0, backend=backend)
    exact = norm(gradients_of(params, 0))
    optimizer.step()
    assert optimizer.grad_norm.shape == () and optimizer.grad_norm.dtype == F64
    assert optimizer.grad_norm.item() == pytest.approx(exact, rel=1e-13)


@each([CASE_OF["adamw"], CASE_OF["adafactor"]])
def test_the_norms_bits_depend_neither_on_threads_nor_on_the_backend(case):
    found, before = set(), torch.get_num_threads()
    for backend, threads in [
        ("cpu", 1),
        ("cpu", 2),
        ("cpu", 5),
        ("reference", 1),
        ("reference", 3),
    ]:
        torch.set_num_threads(threads)
        try:
            params = make_params([*LONG, *100 * [(64, 64)]])
            optimizer = case.make(params, max_grad_norm=1.0, backend=backend)
            gradients_of(params, 0)
            optimizer.step()
        finally:
            torch.set_num_threads(before)
        found.add(optimizer.grad_norm.item())
    assert len(found) == 1


@each_backend
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("value", [1e-25, 1e-10, 1e10, 1e25, 3e38])
def test_squares_that_float32_cannot_hold_are_no_harm(value, dtype, backend):
    (param,) = make_params([(3000,)], dtype)
    optimizer = ADAMW([param], max_grad_norm=1.0, backend=backend)
    param.grad = torch.full((3000,), value, dtype=dtype)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(norm([param.grad]), rel=1e-12)
    assert param.isfinite().all()


@each_backend
@each([CASE_OF["adamw"], CASE_OF["adafactor"]])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_infinities_and_nans_do_what_torchs_clipping_does(case, bad, backend):
    runs = []
    for clips in (True, False):
        params = make_params([(4,), (5, 6)])
        optimizer = case.make(params, backend=backend, **({"max_grad_norm": 0.5} if clips else {}))
        gradients_of(params, 0)
        params[0].grad[1] = bad
        if not clips:
            total = torch.nn.utils.clip_grad_norm_(params, 0.5)
        optimizer.step()
        runs.append((optimizer, params))
    assert_same(*runs[0], *runs[1])
    assert same_bits(runs[0][0].grad_norm.float(), total)


@pytest.mark.parametrize("limit", [100.0, math.inf])
def test_gradients_within_the_limit_make_an_ordinary_step(limit):
    params, twins = make_params(SHAPES), make_params(SHAPES)
    optimizer, plain = ADAMW(params, max_grad_norm=limit), ADAMW(twins)
    exact = norm(gradients_of(params, 0, 0.01))
    gradients_of(twins, 0, 0.01)
    optimizer.step()
    plain.step()
    assert_same(optimizer, params, plain, twins)
    assert optimizer.grad_norm.item() == pytest.approx(exact, rel=1e-13)


def test_who_clips_too_gets_the_same_result():
    params, twins = make_params(SHAPES), make_params(SHAPES)
    optimizer, plain = ADAMW(params, max_grad_norm=0.5), ADAMW(twins)
    for own, made in ((params, optimizer), (twins, plain)):
        gradients_of(own, 0)
        torch.nn.utils.clip_grad_norm_(own, 0.5)
        made.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
    assert optimizer.grad_norm.item() == pytest.approx(0.5, rel=1e-5)


@each_backend
def test_one_norm_holds_all_groups_and_dtypes(backend):
    params = [torch.nn.Parameter(torch.zeros(4, dtype=d)) for d in (F64, BF16, F32)]
    params[2] = torch.nn.Parameter(torch.zeros(2, 1))
    groups = [{"params": [param]} for param in params]
    optimizer = fusedstep.optim.Adafactor(groups, max_grad_norm=1.0, backend=backend)
    for param, value in zip(params, (3.0, 4.0, 6.0), strict=True):
        param.grad = torch.full_like(param, value)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(math.sqrt(4 * 9 + 4 * 16 + 2 * 36))


@each_backend
def test_gradients_may_come_and_go(backend):
    """The norm is 0 without any, and a number again when they come back."""
    params = make_params([(5,), (70001,), (3, 4)])
    optimizer = ADAMW(params, max_grad_norm=1.0, backend=backend)
    optimizer.step()
    assert optimizer.grad_norm.item() == 0.0
    for absent in (0, 1, None, 2, 0, 1):
        grads = gradients_of(params, 0)
        if absent is not None:
            params[absent].grad = None
            del grads[absent]
        optimizer.step()
        assert optimizer.grad_norm.item() == pytest.approx(norm(grads), rel=1e-13)
    for param in params:
        param.grad = None
    optimizer.step()
    assert optimizer.grad_norm.item() == 0.0


LAYOUTS = {
    "expanded": lambda grad: grad.flatten()[:1].reshape((1,) * grad.dim()).expand(grad.shape),
    "negated": lambda grad: torch._neg_view(-grad),
    "transposed": lambda grad: grad.mT.contiguous().mT,
    "sliced": lambda grad: torch.stack([grad, grad], -1)[..., 0],
    "unaligned": lambda grad: grad.new_empty(grad.numel() + 1)[1:].view_as(grad).copy_(grad),
}


@each_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@each([CASE_OF["adamw"], CASE_OF["adafactor"]])
def test_gradients_of_any_layout_count(case, layout, backend):
    params = make_params([(33, 17), (1, 9), (9, 1), (4, 3, 2)])
    optimizer = case.make(params, max_grad_norm=0.5, backend=backend)
    for step in range(2):
        for param, grad in zip(params, gradients_of(params, step), strict=True):
            param.grad = LAYOUTS[layout](grad)
        optimizer.step()
        exact = norm([param.grad for param in params])
        assert optimizer.grad_norm.item() == pytest.approx(exact, rel=1e-13)


def test_memory_in_another_order_has_one_norm_on_every_backend():
    found = []
    for backend in BACKENDS:
        params = [p.data.mT.requires_grad_() for p in make_params([(300, 41), (2, 5, 1031)])]
        optimizer = ADAMW(params, max_grad_norm=0.5, backend=backend)
        for param, twin in zip(params, make_params([(300, 41), (2, 5, 1031)], seed=3), strict=True):
            param.grad = twin.data.mT
        optimizer.step()
        found.append((optimizer, params))
    assert_same(*found[0], *found[1])
    assert same_bits(found[0][0].grad_norm, found[1][0].grad_norm)


def test_complex_gradients_count_as_pairs_of_reals():
    param = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    param.grad = torch.tensor([3 + 4j, 0j, 12j], dtype=torch.complex64).conj()
    optimizer = ADAMW([param], max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm.item() == 13.0


def test_gradients_of_the_closure_count():
    params = make_params([(50,)])
    optimizer = ADAMW(params, max_grad_norm=0.5)

    def closure():
        gradients_of(params, 0)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert optimizer.grad_norm.item() == pytest.approx(norm([params[0].grad]))
