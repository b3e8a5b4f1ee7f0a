"""Low-precision storage: the CPU walkers have the bits of the reference, and master weights train
as float32 weights do."""

import pytest
import torch

from fusedstep.optim.masters import master_of
from tests.support.cases import each, make_params, same_bits, set_grads
from tests.support.stored_cases import (
    BF16,
    F16,
    F32,
    PAIRS,
    STORED_CASES,
    STORED_SHAPES,
    USUAL_PAIRS,
    assert_same_bits,
    of_dtype,
)
from tests.support.sweeps import sweep

# Bits of numbers that are strange to a rounding: the largest finite ones, those that round to
# infinity, infinities, nans with any payload, the smallest ones.
STRANGE = [
    *(0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x7F7F0000, 0x7F7F0001, 0x7F800000, 0x7F800001),
    *(0x7FC00000, 0x7FFFFFFF, 0x7FBFFFFF, 0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x00800000),
    *(0x3F7FFFFF, 0x3F807FFF, 0x3F808000, 0x3F808001, 0x3F80FF80),
]


def strange_numbers(count):
    bits = torch.tensor(STRANGE, dtype=torch.int64)
    bits = torch.cat([bits, bits + 2**31]).repeat(-(-count // (2 * len(STRANGE))))[:count]
    return torch.where(bits < 2**31, bits, bits - 2**32).to(torch.int32).view(F32)


def stepped(case, stored, backend, steps=3, strange=False):
    params = make_params(STORED_SHAPES, stored.dtype)
    optimizer = case.make(params, backend=backend, **stored.options)
    for step in range(steps):
        set_grads(params, step)
        if strange and step == steps - 1:
            for param in params:
                flat = param.grad.view(-1)
                flat[: flat.numel() // 2] = strange_numbers(flat.numel() // 2).to(flat.dtype)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize(("case", "stored"), sweep(PAIRS, USUAL_PAIRS), ids=str)
def test_cpu_equals_the_reference(case, stored):
    params, optimizer = stepped(case, stored, "cpu")
    others, reference = stepped(case, stored, "reference")
    assert_same_bits(optimizer, params, reference, others)


# Other rules store by the same code.
OF_TWO_RULES = [pair for pair in PAIRS if pair[0].name in ("adamw", "hf-adafactor-momentum")]


@pytest.mark.parametrize(("case", "stored"), OF_TWO_RULES, ids=str)
def test_strange_numbers_are_stored_alike(case, stored):
    params, optimizer = stepped(case, stored, "cpu", strange=True)
    others, reference = stepped(case, stored, "reference", strange=True)
    assert_same_bits(optimizer, params, reference, others)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@each(STORED_CASES)
def test_master_weights_train_as_float32_weights(case, dtype):
    params = make_params(STORED_SHAPES, dtype)
    wide = of_dtype(params, F32)
    optimizer, plain = case.make(params, master_weights=True), case.make(wide)
    for step in range(10):
        set_grads(params, step)
        for param, own in zip(params, wide, strict=True):
            own.grad = param.grad.to(F32)
        optimizer.step()
        plain.step()
    for param, own in zip(params, wide, strict=True):
        assert same_bits(master_of(param, optimizer.state[param]), own.detach())
        # The parameter is one of the two neighbours of its master, and the nearer one.
        spacing = 2.0 ** (torch.frexp(own.detach().abs()).exponent - (8 if dtype == BF16 else 11))
        assert ((param.float() - own).abs() <= spacing.clamp(min=2.0**-24) / 2).all()
        for key, value in plain.state[own].items():
            assert same_bits(*map(torch.as_tensor, (optimizer.state[param][key], value))), key


@each(STORED_CASES)
def test_a_rest_of_8_bits_is_a_master_weight_of_24(case):
    params = make_params(STORED_SHAPES, BF16)
    wide = of_dtype(params, F32)
    optimizer, plain = case.make(params, master_weights=8), case.make(wide)
    for step in range(10):
        set_grads(params, step)
        for param, own in zip(params, wide, strict=True):
            own.grad = param.grad.to(F32)
        optimizer.step()
        plain.step()
    for param, own in zip(params, wide, strict=True):
        master = master_of(param, optimizer.state[param])
        assert (master.view(torch.int32) & 0xFF == 0).all()
        # Each step rounds by at most 2^-17 of the weight, which may have been larger before;
        # Adafactor follows the size of its weights.
        assert ((master - own).abs() <= 2 * 10 * 2.0**-17 * own.abs().max()).all()


ADAMW_PAIRS = [pair for pair in PAIRS if pair[0].name == "adamw"]


@pytest.mark.parametrize(("case", "stored"), ADAMW_PAIRS, ids=str)
def test_threads_change_no_bit(case, stored):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(stepped(case, stored, "cpu", steps=2))
    finally:
        torch.set_num_threads(before)
    (params, optimizer), (others, other) = found
    assert_same_bits(optimizer, params, other, others)


def test_every_bfloat16_and_rest_is_kept():
    """TransformerEngine's rest turns the nan 0x7FFFFFFF into -0.0, and flashoptim's is off for
    0.2 % of numbers."""
    from fusedstep.stored_numbers import join, split

    high = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(BF16)
    for rest in (0, 1, -1, 77, 32767, -32768):
        numbers = join(high, torch.full((2**16,), rest, dtype=torch.int16))
        again = join(*split(numbers, torch.int16))
        assert torch.equal(again.isnan(), numbers.isnan())
        is_number = ~numbers.isnan()
        same = again.view(torch.int32) == numbers.view(torch.int32)
        assert same[is_number].all()
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(F32)
    weight, _ = split(nan, torch.int16)
    assert weight.isnan().all()
