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

constexpr int32_t kBend = 0x1fc00000;                 // also the bits of what 0 is bent to
constexpr float kLeastBent = 8.131516293641283e-20f;  // the same as a number

// A number x >= 0, bent. It is close to its square root.
template <class Bits, class Real>
FUSEDSTEP_INLINE Real bent(Real x) {
  return same_bits<Real>((same_bits<Bits>(x) >> 1) + kBend);
}
// The bits of a number from those of what it was bent to.
template <class Bits>
FUSEDSTEP_INLINE Bits unbent_bits(Bits y) {
  const Bits least = Bits{} + kBend;
  return ((y > least ? y : least) - kBend) << 1;
}

}  // namespace
}  // namespace fusedstep
