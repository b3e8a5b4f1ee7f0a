"""Stochastic rounding: its statistics, what the noise depends on, and what it is for."""

import itertools
import math

import pytest
import torch

from fusedstep.hf import Adafactor as HfAdafactor
from fusedstep.optim import Adafactor, AdamW
from fusedstep.plan.whole_places import _places
from fusedstep.rules import noise
from fusedstep.stored_numbers import rounded_by
from tests.support.cases import make_params, same_bits, set_grads
from tests.support.stored_cases import STORED_SHAPES, assert_same_bits

BF16 = torch.bfloat16
COUNT = 100_000
SPACING = 2.0**-7  # of bfloat16 numbers from 1 to 2


def bits_of_noise(count=COUNT, seed=0, number=0, step=1, slot=0, first=0):
    key = noise.tensor_key(seed, number)
    low = noise.step_key(key & 0xFFFFFFFF, step)
    high = noise.second_key(key >> 32 & 0xFFFFFFFF, low)
    places = torch.arange(first, first + count)
    return noise.noise(places, low, high, noise.MULTIPLIERS[slot])


def correlation(a, b):
    """In standard deviations of what independent numbers would have."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return float((a * b).sum() / (a.norm() * b.norm())) * math.sqrt(len(a))


@pytest.mark.parametrize("x", [1.0001, 1.001, 1.003, 1.0039, 1.005, 1.9999])
def test_the_mean_of_many_roundings_is_the_number(x):
    rounded = rounded_by(torch.full((COUNT,), x), bits_of_noise()).float()
    assert set(rounded.unique().tolist()) == {math.floor(x / SPACING) * SPACING} | {
        math.ceil(x / SPACING) * SPACING
    }
    assert abs(float(rounded.double().mean()) - x) < 3e-5


@pytest.mark.parametrize("slot", [0, 2, 3, 4, 5])
def test_it_goes_up_as_often_as_it_should(slot):
    """Chi-square over 64 probabilities."""
    shares = (torch.arange(64) + 0.5) / 64
    found = 0.0
    for index, share in enumerate(shares.tolist()):
        added = bits_of_noise(20_000, slot=slot, number=index)
        ups = int((rounded_by(torch.full((20_000,), 1 + share * SPACING), added) > 1).sum())
        found += (ups - 20_000 * share) ** 2 / (20_000 * share * (1 - share))
    # 64 degrees of freedom: mean 64, standard deviation 11.3.
    assert 64 - 4 * 11.3 < found < 64 + 4 * 11.3


def test_no_two_streams_are_correlated():
    """Gefen-X's noise forgets the tensor, so all tensors share it."""
    streams = [
        bits_of_noise(seed=seed, number=number, step=step, slot=slot)
        for seed, number, step, slot in itertools.product((0, 1), (0, 1, 600), (1, 2), (0, 2, 3))
    ]
    found = [abs(correlation(a, b)) for a, b in itertools.combinations(streams, 2)]
    assert max(found) < 4.5  # of 630 pairs


def test_no_number_is_correlated_with_its_neighbours():
    for slot, lag in itertools.product((0, 2, 3), (1, 2, 3, 4, 7, 8, 16, 64, 128, 768, 4096)):
        own = bits_of_noise(COUNT + lag, slot=slot)
        assert abs(correlation(own[:-lag], own[lag:])) < 4.5


def test_places_beyond_32_bits_repeat():
    assert torch.equal(bits_of_noise(100), bits_of_noise(100, first=2**32))


def test_no_finite_number_becomes_infinite_and_nan_stays():
    """torchao's rounding turns the nan 0x7FFFFFFF into -0.0, and the largest number into inf."""
    bits = torch.tensor([0x7F7FFFFF, 0x7F7F0001, 0x7FFFFFFF, 0x7FC00000, 0x7F800001, 0x7F800000])
    bits = torch.cat([bits, bits - 2**31]).to(torch.int32)
    numbers = bits.view(torch.float32).repeat(1000)
    rounded = rounded_by(numbers, bits_of_noise(len(numbers)))
    assert torch.equal(rounded.isnan(), numbers.isnan())
    assert torch.equal(rounded.isinf(), numbers.isinf())
    assert torch.equal(rounded.sign()[~rounded.isnan()].float(), numbers.sign()[~numbers.isnan()])


def stepped(make, steps=5, shapes=STORED_SHAPES, **options):
    params = make_params(shapes, BF16)
    optimizer = make(params, stochastic_rounding=True, **options)
    for step in range(steps):
        set_grads(params, step)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("make", [AdamW, Adafactor, HfAdafactor])
def test_the_bits_depend_on_the_seed_alone(make):
    """torchao's rounding draws from the global generator."""
    torch.manual_seed(1)
    params, optimizer = stepped(make, seed=7)
    torch.manual_seed(2)
    again, other = stepped(make, seed=7)
    assert_same_bits(optimizer, params, other, again)
    changed, _ = stepped(make, seed=8)
    assert not all(map(same_bits, params, changed))


@pytest.mark.parametrize("make", [AdamW, Adafactor, HfAdafactor])
def test_a_resumed_run_has_the_same_bits(make):
    params, optimizer = stepped(make, steps=6, seed=7)
    begun, first = stepped(make, steps=3, seed=7)
    fresh = [torch.nn.Parameter(p.detach().clone()) for p in begun]
    second = make(fresh, stochastic_rounding=True, seed=7)
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        set_grads(fresh, step)
        second.step()
    assert_same_bits(optimizer, params, second, fresh)


def test_equal_parameters_are_rounded_differently():
    params = [torch.nn.Parameter(torch.ones(1000, dtype=BF16)) for _ in range(2)]
    optimizer = AdamW(params, lr=1e-3, stochastic_rounding=True)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert not torch.equal(*params)


def test_an_absent_gradient_changes_no_other_parameter():
    params = make_params([(40, 40), (7,), (300,)], BF16)
    others = make_params([(40, 40), (7,), (300,)], BF16)
    made = [AdamW(own, stochastic_rounding=True) for own in (params, others)]
    for own in (params, others):
        set_grads(own, 0)
    others[0].grad = None
    for optimizer in made:
        optimizer.step()
    assert all(map(same_bits, params[1:], others[1:]))


def test_small_steps_move_a_weight():
    """A bfloat16 weight of 1.0 that is rounded to nearest stays 1.0: half its spacing is 2^-9."""
    weights = {}
    for options in ({}, {"stochastic_rounding": True}):
        param = torch.nn.Parameter(torch.ones(4096, dtype=BF16))
        optimizer = AdamW([param], lr=1e-3, weight_decay=0.0, **options)
        for _ in range(100):
            param.grad = torch.ones_like(param)
            optimizer.step()
        weights[bool(options)] = param.detach().float()
    assert (weights[False] == 1.0).all()
    assert abs(float(weights[True].mean()) - 0.9) < 2e-3


def test_decay_alone_moves_a_weight_as_in_float32():
    """optimi's Kahan sums round a decay outside of the compensation, so it is lost."""
    param = torch.nn.Parameter(torch.ones(65536, dtype=BF16))
    optimizer = AdamW([param], lr=1e-3, weight_decay=0.1, stochastic_rounding=True)
    for _ in range(300):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    assert abs(float(param.detach().double().mean()) - (1 - 1e-4) ** 300) < 1e-4


def test_second_moments_decay():
    """Rounded to nearest, a bfloat16 second moment never gets smaller by 0.1 %."""
    kept = {}
    for options in ({}, {"stochastic_rounding": True}):
        param = torch.nn.Parameter(torch.ones(4096, dtype=BF16))
        optimizer = AdamW([param], lr=0.0, betas=(0.9, 0.999), **options)
        param.grad = torch.zeros_like(param)
        optimizer.step()
        optimizer.state[param]["exp_avg_sq"].fill_(1.0)
        for _ in range(1000):
            optimizer.step()
        kept[bool(options)] = float(optimizer.state[param]["exp_avg_sq"].double().mean())
    assert kept[False] == 1.0
    assert abs(kept[True] / 0.999**1000 - 1) < 0.02


def whole_place(row, i):
    """As csrc/noise.h has it."""
    first, cols, row_stride, rows, matrix_stride = row
    run = i // cols
    matrix = run // rows
    return first + matrix * matrix_stride + (run - matrix * rows) * row_stride + i - run * cols


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((7,), [slice(2, 5)]),
        ((6, 5), [slice(2, 4), slice(None)]),
        ((6, 5), [slice(None), slice(1, 3)]),
        ((6, 5), [slice(3, 5), slice(1, 4)]),
        ((4, 6, 5), [slice(1, 3), slice(2, 4), slice(1, 3)]),
        ((4, 6, 5), [slice(1, 3), slice(None), slice(2, 3)]),
        ((4, 6, 5), [slice(1, 2), slice(2, 5), slice(None)]),
        ((4, 6, 1), [slice(1, 3), slice(2, 5), slice(None)]),
    ],
)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_places_of_a_part_in_the_whole(shape, parts, is_transposed):
    whole = torch.arange(math.prod(shape)).view(shape)
    own = whole[tuple(parts)].clone(memory_format=torch.contiguous_format)
    of_part = [list(own.shape), own.stride(), whole.stride(), [p.start or 0 for p in parts]]
    if is_transposed:  # the same memory, with the dimensions in another order
        of_part = [facts[::-1] for facts in of_part]
    row = _places(*of_part)
    assert [whole_place(row, i) for i in range(own.numel())] == own.flatten().tolist()


def test_too_many_cuts_are_told():
    assert "too many" in _places([2, 2, 2, 2], (8, 4, 2, 1), (64, 16, 4, 1), [0, 0, 0, 0])


def test_another_order_than_the_whole_is_told():
    assert "another order" in _places([2, 3], (1, 2), (6, 1), [0, 0])
