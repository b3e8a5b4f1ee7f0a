// The noise of stochastic rounding, as python/fusedstep/rules/noise.py explains it: of one number, or
// of many in a vector.
#pragma once

#include "rules/layout.h"

namespace fusedstep {
namespace {

// A bijection of 32 bits in which every bit depends on every bit.
FUSEDSTEP_INLINE uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The keys of a tensor's step.
struct NoiseKeys {
  uint32_t first = 0, second = 0;

  NoiseKeys() = default;
  FUSEDSTEP_INLINE NoiseKeys(int64_t key, double step) {
    first = mixed(uint32_t(key) + uint32_t(int64_t(step)) * 0x9e3779b9u);
    second = mixed(uint32_t(uint64_t(key) >> 32) ^ first);
  }
};

// What the place of a number gives. Neighbours differ by kPlaceFactor.
constexpr uint32_t kPlaceFactor = 0x9e3779b1u;
FUSEDSTEP_INLINE uint32_t noise_of_place(int64_t place, const NoiseKeys& keys) {
  return uint32_t(place) * kPlaceFactor + keys.first;
}

// The noise of a number, or of several, is the upper half of this, xor kNoiseFlip.
constexpr uint32_t kNoiseFlip = 0x7fff;
template <class Bits>
FUSEDSTEP_INLINE Bits noise_bits(Bits of_place, uint32_t second, uint32_t multiplier) {
  const Bits x = (of_place ^ (of_place >> 16)) * 0x7feb352du;
  return (x ^ (x >> 15) ^ second) * multiplier;
}

// The place in the whole tensor of a number of the part that is here.
FUSEDSTEP_INLINE int64_t whole_place(const NoiseRow& row, int64_t i) {
  const int64_t run = i / row.cols, matrix = run / row.rows;
  return row.first + matrix * row.matrix_stride + (run - matrix * row.rows) * row.row_stride +
         (i - run * row.cols);
}

}  // namespace
}  // namespace fusedstep
