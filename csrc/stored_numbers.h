// What states of 8 bits are made of, for one number or for many in a vector: see
// python/fusedstep/stored_numbers.py.
#pragma once

#include <cstring>

#include "numeric.h"

namespace fusedstep {
namespace {

template <class To, class From>
FUSEDSTEP_INLINE To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
}

constexpr int32_t kBend = 0x1fc00000;
constexpr float kLeastBent = 8.131516293641283e-20f;  // 1.5 * 2^-64, of 0

// A number x >= 0, bent, and back. It is close to its square root.
template <class Bits, class Real>
FUSEDSTEP_INLINE Real bent(Real x) {
  return same_bits<Real>((same_bits<Bits>(x) >> 1) + kBend);
}
template <class Bits, class Real>
FUSEDSTEP_INLINE Real unbent(Real y) {
  const Real least = Real{} + kLeastBent;
  return same_bits<Real>((same_bits<Bits>(y > least ? y : least) - kBend) << 1);
}

}  // namespace
}  // namespace fusedstep
