"""GradientAccumulator from one step to the next: hand_over(), reset(), and what is refused before
anything has changed."""

import weakref

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from fusedstep import backends
from fusedstep.accumulate import GradientAccumulator
from tests.support.cases import make_params, same_bits, set_grads

NAMES = ["fc.weight", "fc.bias", "head.weight"]
SHAPES = [(4, 3), (7,), (5, 6)]
HEAD = "parameter 2 ('head.weight', shape (5, 6), torch.float32, on cpu)"


def ready(dtype=torch.float32, bad=None, calls=1, **options):
    """An accumulator after some calls, and new gradients. `bad` replaces the last parameter."""
    params = make_params(SHAPES, dtype)
    if bad is not None:
        params[-1] = bad
    accumulator = GradientAccumulator(zip(NAMES, params, strict=True), **options)
    good = params if bad is None else params[:-1]
    for call in range(calls + 1):
        set_grads(good, call)
        if call < calls:
            accumulator()
    return accumulator, params


def snapshot(accumulator, params):
    sums = [None if own is None else own.clone() for own in accumulator._sums]
    return sums, [param.grad for param in params], accumulator.step


def refused(kind, accumulator, params, *words, by=None):
    """The call raises `kind` with these words. Sums, gradients and count do not change."""
    sums, grads, step = snapshot(accumulator, params)
    with pytest.raises(kind) as error:
        (by or accumulator)()
    for word in ("GradientAccumulator", *words):
        assert word in str(error.value), error.value
    now, now_grads, now_step = snapshot(accumulator, params)
    for old, new in zip(sums, now, strict=True):
        assert old is new is None or same_bits(old, new)
    assert all(old is new for old, new in zip(grads, now_grads, strict=True))
    assert step == now_step


# Handing over.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_become_the_gradients_themselves(dtype):
    accumulator, params = ready(dtype)
    accumulator()
    accumulator.hand_over()
    assert all(p.grad is own for p, own in zip(params, accumulator.gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_16_bit_parameters_are_handed_over_rounded(dtype):
    accumulator, params = ready(dtype)
    accumulator(0.3)
    for _ in range(2):
        accumulator.hand_over()
        for param, own in zip(params, accumulator.gradients, strict=True):
            assert own.dtype == torch.float32
            assert same_bits(param.grad, own.to(dtype))
            assert param.grad.stride() == param.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", ["at once", "after a backward", "by the user"])
def test_what_was_handed_over_is_never_added_to_itself(how, dtype):
    accumulator, params = ready(dtype)
    accumulator()
    if how == "by the user" and dtype == torch.float32:
        params[2].grad = accumulator.gradients[2]
    else:
        accumulator.hand_over()
        params[0].grad = params[1].grad = None
    if how == "after a backward":
        params[2].sum().backward()
    where = HEAD.replace("float32", str(dtype).removeprefix("torch."))
    refused(RuntimeError, accumulator, params, where, "Call reset()")
    accumulator.reset()
    set_grads(params, 5)
    grads = [param.grad.float() for param in params]
    accumulator()
    assert all(map(torch.equal, accumulator.gradients, grads))


def test_sums_go_on_when_the_gradients_are_dropped_instead_of_reset():
    accumulator, params = ready()
    accumulator.hand_over()
    before = [own.clone() for own in accumulator.gradients]
    set_grads(params, 3)
    grads = [param.grad.clone() for param in params]
    accumulator()
    expected = map(torch.add, before, grads)
    assert all(map(torch.equal, accumulator.gradients, expected))
    assert accumulator.step == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reset_zeroes_the_sums_in_place_and_drops_only_what_it_gave(dtype):
    accumulator, params = ready(dtype)
    accumulator()
    accumulator.hand_over()
    others = params[1].grad = torch.ones_like(params[1])
    sums, given = accumulator.gradients, weakref.ref(params[0].grad)
    accumulator.reset()
    assert (given() is None) == (dtype == torch.bfloat16)
    assert accumulator.step == 0
    assert [param.grad for param in params] == [None, others, None]
    for own, old in zip(accumulator.gradients, sums, strict=True):
        assert own is old
        assert not own.any()


def test_there_is_nothing_to_hand_over_before_the_first_call():
    params = make_params(SHAPES)
    accumulator = GradientAccumulator(params)
    set_grads(params, 0)
    for _ in range(2):
        refused(ValueError, accumulator, params, "call it", by=accumulator.hand_over)
        refused(ValueError, accumulator, params, "call it", by=lambda: accumulator.gradients)
        accumulator.reset()
    for param in params:
        param.grad = None
    accumulator()
    assert accumulator.gradients == 3 * [None]
    accumulator.hand_over()
    assert accumulator.step == 1


def test_gradients_that_require_gradients_are_added_as_numbers():
    param = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    accumulator = GradientAccumulator([param])
    for layout in (torch.clone, lambda x: torch.stack([x, x], 1)[:, 0]):
        (grad,) = torch.autograd.grad(param.pow(3).sum(), param, create_graph=True)
        param.grad = layout(grad)
        assert param.grad.requires_grad
        accumulator()
    (own,) = accumulator.gradients
    assert torch.equal(own, 6 * param.detach() ** 2)
    (staged,) = accumulator._plan.buckets[0].staged  # for the gradient that had to be copied
    assert not own.requires_grad and not staged.copy.requires_grad


# Arguments.

COMPUTED = torch.ones(2, requires_grad=True) * 2
WRONG = {
    "no parameters": ([], ValueError, "empty parameter list"),
    "a tensor": (torch.ones(2), TypeError, "params is a Tensor"),
    "a module": (torch.nn.Linear(1, 1), TypeError, "params is a Linear"),
    "modules": (torch.nn.Sequential(torch.nn.ReLU()), TypeError, "params is a Sequential"),
    "a number": (3, TypeError, "params is a int"),
    "numbers": ([torch.ones(1), 3], TypeError, "entry 1 of params is a int"),
    "groups": ([{"params": []}], TypeError, "entry 0 of params is a dict"),
    "a pair without a tensor": ([("a", "b")], TypeError, "entry 0 of params is a str"),
    "what is computed": ([("a", COMPUTED)], ValueError, "parameter 0 ('a', shape (2,)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_parameters_are_refused_by_position(what):
    params, kind, words = WRONG[what]
    with pytest.raises(kind) as error:
        GradientAccumulator(params)
    assert words in str(error.value)


def test_a_parameter_may_be_given_only_once():
    params = make_params(SHAPES)
    with pytest.raises(ValueError, match=r"parameter 3 \('d'.* is parameter 1 \('b'.* once more"):
        GradientAccumulator(zip("abcd", [*params, params[1]], strict=True))


def test_weights_may_be_strings_and_nothing_else_but_numbers():
    params = make_params(SHAPES)
    accumulator = GradientAccumulator(params, scale="5e-1")
    assert accumulator.scale == 0.5
    for scale, weight in ((None, 0.5), ("25e-2", 0.25), (2, 2.0), (0, 0.0)):
        set_grads(params, 0)
        grads = [param.grad.clone() for param in params]
        accumulator(scale)
        assert all(map(torch.equal, accumulator.gradients, [weight * grad for grad in grads]))
        accumulator.reset()
    for scale, kind in (("half", ValueError), (torch.ones(()), TypeError), ([1.0], TypeError)):
        set_grads(params, 0)
        with pytest.raises(kind, match="scale should be a number"):
            GradientAccumulator(params, scale)
        with pytest.raises(kind, match="scale should be a number"):
            accumulator(scale)
        assert accumulator.step == 0 and params[0].grad is not None


def test_backends_are_chosen_and_refused_as_by_optimizers(monkeypatch):
    with pytest.raises(ValueError, match="backend should be one of"):
        GradientAccumulator(make_params(SHAPES), backend="gpu")
    monkeypatch.setattr(backends.BACKENDS["triton"], "devices", lambda: ("cuda",))
    monkeypatch.setattr(backends.BACKENDS["triton"], "why_absent", lambda: "")
    params = make_params(SHAPES)
    accumulator = GradientAccumulator(zip(NAMES, params, strict=True), backend="triton")
    set_grads(params[2:], 0)
    with pytest.raises(RuntimeError, match=r"backend='triton' updates tensors on cuda, not .*head"):
        accumulator()
    assert accumulator._sums == 3 * [None] and params[2].grad is not None


# Gradients.


def test_gradients_and_parameters_that_optimizers_refuse_are_refused_here():
    accumulator, params = ready()
    params[2].grad = params[2].grad.to_sparse()
    refused(RuntimeError, accumulator, params, HEAD, "torch.sparse_coo", ".to_dense()")
    for bad, kind, word in (
        (torch.ones(5, 6, device="meta"), RuntimeError, "meta"),
        (torch.ones(5, 6, dtype=torch.int64), TypeError, "torch.int64"),
        (TwoTensor(torch.ones(5, 6), torch.ones(5, 6)), TypeError, "TwoTensor"),
    ):
        param = torch.nn.Parameter(bad, requires_grad=False)
        accumulator, params = ready(bad=param, calls=0)
        param.grad = bad.clone()
        refused(kind, accumulator, params, "'head.weight', shape (5, 6)", word)


def test_a_gradient_of_another_shape_is_refused():
    accumulator, params = ready()
    params[2].data = torch.ones(6, 5)
    refused(RuntimeError, accumulator, params, "'head.weight'", "gradient has shape (5, 6)")


@pytest.mark.parametrize("change", ["shape", "kind of numbers", "precision"])
def test_a_parameter_that_its_sum_does_not_belong_to_any_more_is_refused(change):
    accumulator, params = ready()
    params[2].grad = None
    params[2].data = {
        "shape": torch.ones(6, 5),
        "kind of numbers": torch.ones(5, 6, dtype=torch.complex64),
        "precision": torch.ones(5, 6, dtype=torch.float64),
    }[change]
    params[2].grad = torch.ones_like(params[2])
    words = ("'head.weight'", "its sum is of (5, 6), torch.float32", "Make a new")
    refused(RuntimeError, accumulator, params, *words)
    if change != "precision":
        refused(RuntimeError, accumulator, params, *words, by=accumulator.hand_over)


def test_a_parameter_may_be_replaced_by_one_of_its_kind():
    accumulator, params = ready()
    expected = [own.clone() for own in accumulator.gradients]
    for param in params:
        grad, param.grad = param.grad, None
        param.data = param.data.clone()
        param.grad = grad
    expected = [own + param.grad for own, param in zip(expected, params, strict=True)]
    accumulator()
    assert all(map(torch.equal, accumulator.gradients, expected))


def test_a_call_in_a_capture_is_refused(capturing):
    accumulator, params = ready()
    capturing.add("cpu")
    refused(RuntimeError, accumulator, params, "captured in a graph")
    params[1].grad = None  # a new plan would be needed
    plan = accumulator._plan
    refused(RuntimeError, accumulator, params, "captured in a graph")
    assert accumulator._plan is plan
    capturing.clear()
    accumulator()
