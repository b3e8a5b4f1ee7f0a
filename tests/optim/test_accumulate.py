"""GradientAccumulator's sums have the same bits as torch's, for any layout of the gradients and any
cut of the work."""

import pytest
import torch

from fusedstep import native
from fusedstep.accumulate import GradientAccumulator
from tests.support.accumulating import WEIGHTS, gradients, of_dtype, run
from tests.support.cases import DTYPES, make_params, same_bits
from tests.support.layouts import LAYOUTS, plain
from tests.support.layouts import SHAPES as LAYOUT_SHAPES

STRANGE = [float("inf"), float("-inf"), float("nan"), 1e-30, 1e30, 1e-42]
each_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])


def added(own, grad, weight):
    """A product and a sum, each rounded to the sum's dtype."""
    return own + weight * grad.to(own.dtype)


def torchs_sums(params, calls):
    """The sums by torch. `calls` holds (weight, gradients) pairs."""
    sums = [torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32)) for p in params]
    for weight, grads in calls:
        sums = [added(own, grad, weight) for own, grad in zip(sums, grads, strict=True)]
    return sums


def assert_same(ours, others):
    for own, other in zip(ours, others, strict=True):
        assert same_bits(own, other), f"{tuple(own.shape)} {own.dtype}"


# Values.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_backend
def test_sums_have_the_bits_of_torchs_product_and_sum(backend, dtype):
    params, calls = of_dtype(dtype)
    accumulator = run(params, calls, backend=backend)
    assert_same(accumulator.gradients, torchs_sums(params, calls))
    assert accumulator.step == len(calls)


@pytest.mark.parametrize("value", STRANGE)
@each_backend
def test_strange_numbers_are_summed_as_torch_does(backend, value):
    params, calls = of_dtype(torch.float32)
    for _, grads in calls[1:3]:
        for grad in grads:
            if grad.numel():
                grad.view(-1)[grad.numel() // 2] = value
    assert_same(run(params, calls, backend=backend).gradients, torchs_sums(params, calls))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_are_as_near_to_float64_as_float32_allows(dtype):
    """Each term is rounded once for its weight and once for the product. It goes through at most
    one addition for each call."""
    weights = [0.1 + 0.07 * k for k in range(16)]
    params, calls = of_dtype(dtype, weights)
    for index, own in enumerate(run(params, calls).gradients):
        terms = [weight * grads[index].double() for weight, grads in calls]
        exact, magnitude = sum(terms), sum(term.abs() for term in terms)
        assert own.dtype == torch.float32
        assert ((own - exact).abs() <= (len(calls) + 2) * 2.0**-24 * magnitude * 1.001).all()


def test_micro_batches_make_the_gradient_of_the_whole_batch_and_train_as_it():
    """In float64. The two orders of summation differ by a few units, and after three steps of SGD
    still do."""
    data = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(1)
    models = [torch.nn.Linear(5, 3, dtype=torch.float64) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in models]
    accumulator = GradientAccumulator(models[0].named_parameters())
    for _ in range(3):
        for batch in data.split([5, 5, 2]):  # uneven, so each has its weight
            models[0](batch).square().mean().backward()
            accumulator(len(batch) / len(data))
        accumulator.hand_over()
        models[1](data).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        for own, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(own, other, rtol=1e-13, atol=1e-14)
        accumulator.reset()
        optimizers[1].zero_grad()
        assert all(param.grad is None for param in models[0].parameters())


def test_every_instruction_set_and_number_of_threads_sums_the_same():
    level, threads = native.module.active_level(), torch.get_num_threads()
    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            params, calls = of_dtype(dtype)
            expected = torchs_sums(params, calls)
            for own in native.module.levels():
                native.module.use_level(own)
                for count in (1, 3):
                    torch.set_num_threads(count)
                    assert_same(run(params, calls).gradients, expected)
    finally:
        native.module.use_level(level)
        torch.set_num_threads(threads)


@each_backend
def test_every_dtype_in_one_list_and_gradients_that_come_and_go(backend):
    params = [p for dtype in DTYPES for p in make_params([(7,), (33, 17), (0,)], dtype)]
    calls = [(weight, gradients(params, k)) for k, weight in enumerate(WEIGHTS)]
    for k, (_, grads) in enumerate(calls):
        grads[1] = None
        grads[k] = grads[-1 - k] = None
    accumulator = run(params, calls, backend=backend)
    for index, own in enumerate(accumulator.gradients):
        if index == 1:
            assert own is None
            continue
        present = [(w, [grads[index]]) for w, grads in calls if grads[index] is not None]
        assert_same([own], torchs_sums([params[index]], present))
    accumulator.hand_over()
    assert params[1].grad is None


@each_backend
def test_gradients_of_a_dtype_of_their_own(backend):
    """Parameters can have them from torch 2.10 on."""
    params = make_params([(7,), (33, 17)], torch.bfloat16)
    if not hasattr(params[0], "grad_dtype"):
        pytest.skip("needs torch 2.10")
    wide = [torch.randn(p.shape, dtype=torch.float64) for p in params]
    for param, dtype in zip(params, (None, torch.float32), strict=True):
        param.grad_dtype = dtype
    calls = [(0.3, [wide[0], wide[1].float()]), (0.7, [wide[0].bfloat16(), wide[1].float()])]
    accumulator = run(params, calls, backend=backend)
    first, second = accumulator.gradients
    assert (first.dtype, second.dtype) == (torch.float64, torch.float32)
    for own, index in ((first, 0), (second, 1)):
        expected = torch.zeros_like(own)
        for weight, grads in calls:
            expected = added(expected, grads[index], weight)
        assert same_bits(own, expected)
    accumulator.hand_over()
    assert params[0].grad is first and params[1].grad is second


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@each_backend
def test_any_layout_has_the_bits_of_the_plain_one(backend, layout):
    for dtype in (torch.float32, torch.bfloat16):
        plainly = make_params(LAYOUT_SHAPES, dtype)
        calls = [(weight, gradients(plainly, k)) for k, weight in enumerate(WEIGHTS)]
        expected = torchs_sums(plainly, calls)
        for of_param, of_grad in ((layout, plain), (plain, layout), (layout, layout)):
            params = [torch.nn.Parameter(of_param(p.detach())) for p in plainly]
            laid = [(weight, [of_grad(grad) for grad in grads]) for weight, grads in calls]
            accumulator = run(params, laid, backend=backend)
            assert_same(accumulator.gradients, expected)
            for param, own in zip(params, accumulator.gradients, strict=True):
                assert own.stride() == torch.empty_like(param).stride()


@each_backend
def test_expanded_gradients_equal_their_copies(backend):
    params = make_params(LAYOUT_SHAPES)
    grads = [torch.tensor(0.3).expand(param.shape) for param in params]
    accumulator = run(params, 3 * [(0.7, grads)], backend=backend)
    expected = torchs_sums(params, 3 * [(0.7, [grad.contiguous() for grad in grads])])
    assert_same(accumulator.gradients, expected)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@each_backend
def test_complex_gradients_are_pairs_of_reals(backend, dtype):
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in [(), (7,), (9, 5)]]
    views = [torch.conj, torch.clone, torch._neg_view, torch.conj]
    calls = [
        (weight, [view(torch.randn(p.shape, dtype=dtype)) for p in params])
        for weight, view in zip(WEIGHTS, views, strict=True)
    ]
    sums = [torch.zeros(p.shape, dtype=dtype) for p in params]
    for weight, grads in calls:
        for own, grad in zip(sums, grads, strict=True):
            pairs = torch.view_as_real(own)
            pairs.copy_(added(pairs, torch.view_as_real(grad.resolve_conj().resolve_neg()), weight))
    accumulator = run(params, calls, backend=backend)
    assert_same(map(torch.view_as_real, accumulator.gradients), map(torch.view_as_real, sums))
    accumulator.hand_over()
    assert all(p.grad is own for p, own in zip(params, accumulator.gradients, strict=True))


def test_negated_gradients_are_read_with_their_sign():
    params = make_params([(33, 17)])
    grad = torch.randn(33, 17)
    calls = [(0.3, [grad.clone()]), (0.3, [torch._neg_view(grad)]), (1.0, [grad.clone()])]
    assert_same(run(params, calls).gradients, torchs_sums(params, calls))


def test_a_negated_gradient_in_the_place_of_one_that_is_gone_is_read_with_its_sign():
    """Python may give a new object the address of an old one."""
    param = torch.nn.Parameter(torch.zeros(64))
    accumulator, numbers = GradientAccumulator([param]), torch.full((64,), 2.0)
    for _ in range(1000):
        accumulator.reset()
        param.grad = torch.ones(64)
        address = id(param.grad)
        accumulator()
        views = [torch._neg_view(numbers) for _ in range(100)]
        if there := [view for view in views if id(view) == address]:
            break
    (param.grad,) = there
    accumulator()
    assert torch.equal(accumulator.gradients[0], torch.full((64,), -1.0))
