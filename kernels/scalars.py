"""The places of Adafactor's scalars in their row, as Triton constants."""

import triton
import triton.language as tl

from fusedstep.rules.adafactor import SCALARS

ROW_LENGTH = tl.constexpr(2 + len(SCALARS))
SIGN = tl.constexpr(0)  # of the gradient
STEP = tl.constexpr(1 + len(SCALARS))  # its number


def _place(name: str) -> tl.constexpr:
    return tl.constexpr(1 + SCALARS.index(name))


BETA2 = _place("beta2")
ONE_MINUS_BETA2 = _place("one_minus_beta2")
EPS_STAT = _place("eps_stat")
MEAN_FLOOR = _place("mean_floor")
CAP = _place("cap")
RHO = _place("rho")
SCALED = _place("scaled")
SCALE_FLOOR = _place("scale_floor")
CLIP = _place("clip")
DIVISOR_IF_NAN = _place("divisor_if_nan")
DECAY_FIXED = _place("decay_fixed")
DECAY_SCALED = _place("decay_scaled")
BETA1 = _place("beta1")
ONE_MINUS_BETA1 = _place("one_minus_beta1")


@triton.jit
def get(row, place, T: tl.constexpr):
    return tl.load(row + place).to(T)


@triton.jit
def decay_rates(row, T: tl.constexpr):
    """What updates a second moment: beta2, 1 - beta2, eps."""
    return get(row, BETA2, T), get(row, ONE_MINUS_BETA2, T), get(row, EPS_STAT, T)


@triton.jit
def is_scaled(row, T: tl.constexpr):
    """Whether the step depends on rms(p), so that the first read sums p^2."""
    return get(row, SCALED, T) > 0.0
