"""The rules: texts, host scalars, the reference's arithmetic, and which imports are allowed."""

import ast
import itertools
import math
import random
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import fusedstep
from fusedstep import operations
from fusedstep.backends import reference_steps as reference
from fusedstep.emit.__main__ import headers
from fusedstep.rules import RULES, Rule, adafactor, adamw, numbers
from fusedstep.rules.decay import signed_decay
from fusedstep.rules.layout import BLOCK, GROUP, LANES, TILE
from fusedstep.rules.numbers import where

PACKAGE = Path(fusedstep.__file__).parent
CSRC = Path(__file__).parents[2] / "csrc"
STRANGE = [0.0, -0.0, 1.0, -1.5, 5e-324, 2e-308, 1e-30, 3e200, -7e307]
STRANGE += [math.inf, -math.inf, math.nan]
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
each_dtype = pytest.mark.parametrize("dtype", UNIT, ids=str)


def bits(x):
    """A number's bits, for comparison. All nans count as equal."""
    x = torch.as_tensor(x, dtype=torch.float64)
    return torch.where(x.isnan(), torch.nan, x).view(torch.int64).tolist()


# The texts.


@pytest.mark.parametrize("place", headers())
def test_a_header_printed_from_python_is_not_stale(place):
    assert (CSRC / place).read_text() == headers()[place]


@pytest.mark.parametrize("name", RULES)
def test_rules_on_floats_equal_the_reference_on_float64(name):
    rule, draw = RULES[name], random.Random(0)
    pool = STRANGE + [draw.uniform(-2, 2) for _ in STRANGE]
    for scalars in ([draw.uniform(0.1, 2) for _ in rule.scalars] for _ in range(4)):
        own = dict(zip(rule.scalars, scalars, strict=True))
        bound = operations.bind(rule, scalars)
        for function in rule.functions:
            arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
            taken = {key: own[key] for key in arguments if key in own}
            rows = [[draw.choice(pool) for a in arguments if a not in own] for _ in range(300)]
            plain = [function(*row, **taken) for row in rows]
            tensors = torch.tensor(rows, dtype=torch.float64).unbind(1)
            result = getattr(bound, function.__name__)(*tensors)
            if not isinstance(result, tuple):
                plain, result = [(x,) for x in plain], (result,)
            for index, tensor in enumerate(result):
                tensor = torch.as_tensor(tensor, dtype=torch.float64).expand(len(rows))
                assert bits([row[index] for row in plain]) == bits(tensor), function.__name__


def chosen(p, g, rate, eps):
    p = where(g < 0.0, 0.1, where(g > 0.0, rate, 0.7)) + where(rate > eps, 0.0, p)
    return (p,)


@each_dtype
def test_a_number_of_a_text_has_the_dtype_of_what_it_meets(dtype):
    """For two plain numbers in `where`, torch would take its default dtype."""
    rule = Rule("chosen", (), ("rate", "eps"), (chosen,))
    g = torch.tensor([-1.0, 1.0, 0.0], dtype=dtype)
    for tensors in (False, True):
        row = torch.tensor([0.3, 1e-300], dtype=torch.float64)
        (p,) = operations.bind(rule, row.unbind() if tensors else row.tolist()).update(g, g)
        assert p.dtype == dtype
        assert p.tolist() == torch.tensor([0.1, 0.3, 0.7], dtype=dtype).tolist()


# Named operations.


@pytest.mark.parametrize("name", ["div", "maximum", "minimum"])
def test_operations_of_two_numbers_are_those_of_ieee(name):
    pairs = list(itertools.product(STRANGE, repeat=2))
    expected = getattr(torch, name)(*torch.tensor(pairs, dtype=torch.float64).unbind(1))
    got = torch.tensor([getattr(numbers, name)(*pair) for pair in pairs], dtype=torch.float64)
    assert ((got == expected) | (got.isnan() & expected.isnan())).all()
    # The larger of 0 and -0 may be either. The sign of a quotient is fixed.
    assert name != "div" or bits(got) == bits(expected)


def test_where_and_sqrt_of_floats_are_those_of_ieee():
    roots = np.sqrt([x if x >= 0 else math.nan for x in STRANGE])
    assert bits([numbers.sqrt(x) for x in STRANGE]) == bits(roots)
    assert [numbers.where(c, 1.0, math.nan) == 1.0 for c in (True, False)] == [True, False]


def any_numbers(dtype, count):
    """Positive finite numbers of every exponent, denormal ones too, and the edge cases."""
    whole, top = (torch.int32, 0xFF << 23) if dtype == torch.float32 else (torch.int64, 0x7FF << 52)
    generator = torch.Generator().manual_seed(1)
    anywhere = torch.randint(1, top, (count,), generator=generator, dtype=whole)
    denormal = torch.randint(1, top >> 10, (count // 10,), generator=generator, dtype=whole)
    edges = torch.tensor([1, 2, 3, top - 1], dtype=whole)
    near_one = torch.tensor(1.0, dtype=dtype).view(whole) + torch.arange(-64, 64, dtype=whole)
    return torch.cat([anywhere, denormal, edges, near_one]).view(dtype)


def near_midpoints():
    """float64 numbers whose roots are next to a midpoint r + 1/2: x = r^2 + r + c for a small c.
    The last bits of x must be zeros, so that float64 holds it. Such r are found bit by bit."""
    for c, zeros, r in itertools.product(range(-64, 66, 2), (52, 53), (0, 1)):
        for bit in range(1, zeros):
            r += (r * r + r + c >> bit & 1) << bit
        for root in (r, r + 2**52):
            x = root * root + root + c
            if root >> 52 == 1 and x >> zeros >> 52 == 1:
                yield float(x)


@each_dtype
def test_sqrt_of_tensors_is_correctly_rounded(dtype):
    """math.sqrt is, and its float64 roots are precise enough to be rounded again to float32."""
    hard = list(near_midpoints())
    assert len(hard) > 80
    x = torch.cat([any_numbers(dtype, 400_000), torch.tensor(hard, dtype=dtype)])
    exact = torch.tensor([math.sqrt(value) for value in x.tolist()], dtype=torch.float64)
    wrong = operations.sqrt(x) != exact.to(dtype)
    assert not wrong.any(), f"{int(wrong.sum())} roots, that of {x[wrong][0].item().hex()}"
    edges = torch.tensor([0.0, math.inf, -1.0, -math.inf, math.nan], dtype=dtype)
    assert bits(operations.sqrt(edges)) == bits([0.0, math.inf, *3 * [math.nan]])


# Sums.

LENGTHS = [1, 2, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025, 3000]
each_length = pytest.mark.parametrize("length", LENGTHS)


def normal(*shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]), dtype=dtype)


def fold(x):
    half = len(x) // 2
    return fold([a + b for a, b in zip(x[:half], x[half:], strict=True)]) if half else x[0]


def parts(x, length):
    return [x[start : start + length] for start in range(0, len(x), length)]


def sum_of_row(x):
    """The order that `rules/layout.py` describes, number by number."""
    zero = x.dtype.type(0)
    sums = (fold([sum(tile[k::LANES], zero) for k in range(LANES)]) for tile in parts(x, TILE))
    return sum(map(np.float64, sums), np.float64(0))


def sum_of_column(x):
    zero = x.dtype.type(0)
    padded = np.pad(x, (0, -len(x) % GROUP))
    sums = (sum(map(fold, parts(block, GROUP)), zero) for block in parts(padded, BLOCK))
    return sum(map(np.float64, sums), np.float64(0))


@each_dtype
@each_length
def test_sums_run_in_the_documented_order(length, dtype):
    x = normal(3, length, dtype=dtype)
    rows, columns = reference.row_sums(x), reference.column_sums(x.T)
    assert rows.dtype == columns.dtype == torch.float64
    assert rows.tolist() == [sum_of_row(row) for row in x.numpy()]
    assert columns.tolist() == [sum_of_column(row) for row in x.numpy()]


@each_dtype
@each_length
def test_sums_are_as_near_as_their_order_allows(length, dtype):
    """A term goes through `depth` additions in the dtype, then one in float64 for each part. So the
    error is below that many units of the sum of magnitudes. 0.1 % covers the squares of units."""
    x = normal(length, dtype=dtype)
    exact, magnitude = math.fsum(x.tolist()), math.fsum(x.abs().tolist())
    sums = [
        (reference.row_sums(x), TILE // LANES - 1 + math.log2(LANES), TILE),
        (reference.column_sums(x[:, None]), BLOCK // GROUP - 1 + math.log2(GROUP), BLOCK),
    ]
    for result, depth, part in sums:
        units = depth * UNIT[dtype] + math.ceil(length / part) * 2.0**-53
        assert abs(result.item() - exact) <= units * 1.001 * magnitude


def test_fold_adds_halves_and_in_order_goes_from_front_to_back():
    x = torch.tensor([2.0**53, 1.0, -(2.0**53), 1.0, 5.0], dtype=torch.float64)
    assert reference.fold(x[:4], 0).item() == 2.0
    assert reference.in_order(x[:4]).item() == 1.0
    assert reference.in_order(x, 2).tolist() == [2.0**53, 1.0 - 2.0**53, 5.0]


# Host scalars.


@pytest.mark.parametrize("step", [1, 2, 10, 1000, 10**6])
def test_adamw_scalars_are_the_closed_forms(step):
    """beta^t is rounded once, by at most one unit, and 1 - beta^t may be much smaller."""
    lr, beta1, beta2 = 3e-4, 0.9, 0.999
    options = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": 1e-7, "weight_decay": 0.1}
    ours = adamw.torch_scalars(step, **options)
    row = RULES["adamw"].row(ours)
    assert row[:6] == [beta1, 1 - beta1, beta2, 1 - beta2, 1e-7, lr * 0.1]
    for got, power, beta in ((row[6] / lr, 1, beta1), (row[7], 2, beta2)):
        bias = 1 - Fraction(beta) ** min(step, 2000 if beta1 == beta else 50_000)
        error = abs(Fraction(got) ** power * bias - 1)
        assert error <= 2.0**-53 / float(bias) + 8 * 2.0**-53
    old = adamw.transformers_scalars(step, **options, correct_bias=True)
    assert old == ours | {"step_size": old["step_size"], "inv_root_bias2": 1.0}
    assert math.isclose(old["step_size"], row[6] / row[7], rel_tol=1e-15)
    plain = adamw.transformers_scalars(step, **options, correct_bias=False)
    assert plain == old | {"step_size": lr}


@pytest.mark.parametrize(
    ("step", "decay", "rho", "warm"),
    [(1, 1.0, 1e-2, 1e-6), (10**5, 1e-4, 10**-2.5, 10**-2.5), (10**6, 10**-4.8, 1e-3, 1e-3)],
)
def test_adafactor_scalars_are_the_closed_forms(step, decay, rho, warm):
    hf = {"lr": None, "eps": (1e-30, 1e-3), "clip_threshold": 2.0, "decay_rate": -0.8}
    hf |= {"beta1": None, "weight_decay": 0.5, "relative_step": True}
    for scaled, warmup, expected in ((True, False, rho), (False, True, warm)):
        ours = adafactor.transformers_scalars(
            step, **hf, scale_parameter=scaled, warmup_init=warmup
        )
        assert ours["one_minus_beta2"] == pytest.approx(decay, rel=1e-11)  # 1 - (1 - decay)
        assert ours["beta2"] == 1.0 - ours["one_minus_beta2"]
        assert ours["rho"] == pytest.approx(expected, rel=1e-15)
        assert ours["decay_scaled" if scaled else "decay_fixed"] == 0.5 * ours["rho"]
        assert ours["decay_fixed" if scaled else "decay_scaled"] == 0.0

    options = {"lr": 1e-2, "beta2_decay": -0.8, "eps2": 1e-3, "d": 1.0, "weight_decay": 0.5}
    ours = adafactor.torch_scalars(step, eps1=0.25, **options)
    assert ours["one_minus_beta2"] == pytest.approx(decay, rel=1e-15)
    assert ours["beta2"] == 1.0 - ours["one_minus_beta2"]
    assert ours["rho"] == pytest.approx(min(1e-2, rho), rel=1e-15)
    assert (ours["cap"], ours["decay_fixed"], ours["decay_scaled"]) == (4.0, 5e-3, 0.0)
    assert adafactor.torch_scalars(step, eps1=0.0, **options)["cap"] == math.inf


@pytest.mark.parametrize("decay", [0.0, 1e-9, 0.1, 0.499, 0.5, 0.9, 1 - 1e-12, 1.0, 1.5, math.nan])
def test_a_signed_decay_is_the_decay_or_minus_what_is_kept(decay):
    signed = signed_decay(decay)
    assert bits(signed) == bits(decay - 1.0 if 0.5 <= decay < 1.0 else decay)
    tensor = operations.on_tensors(signed_decay)(torch.tensor([decay], dtype=torch.float64))
    assert bits(tensor) == bits([signed])


# Imports: a package imports only those below it, and torch.

FLOORS = [
    {"rules"},
    {"docstrings", "native", "shared_memory", "stored_numbers", "words"},
    {"plan"},
    {"gpu", "operations", "check"},
    {"check_states"},
    {"emit", "kernels"},
    {"backends"},
    {"optim", "accumulate"},
    {"schedules"},
    {"hf", "config", "frameworks"},
    {"convert"},
    {"convert_file"},
    {"__init__"},
    {"__main__"},
]
# Packages that a file imports in a function, when a user asks for them.
WHEN_USED = {
    "schedules/draw.py": {"matplotlib"},
    "config.py": {"yaml"},
    "hf/trainer.py": {"transformers"},
}
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("file", FILES)
def test_imports_go_downwards_only(file):
    *folders, stem = file.removesuffix(".py").split("/")
    room = (*folders, stem)[0]
    ours, others = set(), set()
    for node in ast.walk(ast.parse(FILES[file].read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module)
        elif isinstance(node, ast.ImportFrom) and node.level > len(folders):
            ours |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
    (floor,) = (k for k, rooms in enumerate(FLOORS) if room in rooms)
    assert ours - {"_native", "__version__"} <= set().union(*FLOORS[:floor])
    if room == "rules":
        assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names
    elif file == "schedules/formulas.py":
        assert others == {"__future__", "math"} and not ours
    elif room not in ("triton", "kernels"):
        known = {"torch", *sys.stdlib_module_names, *WHEN_USED.get(file, ())}
        assert {name.split(".")[0] for name in others} <= known
