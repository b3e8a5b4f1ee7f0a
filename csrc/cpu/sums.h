// Sums along rows and down columns, in the order that python/fusedstep/rules/layout.py defines.
#pragma once

#include <algorithm>

#include "load_store.h"

namespace fusedstep {
namespace {

// The fold of kGroup numbers `at(k)`, from the inside out, to keep few in registers at once.
template <int First = 0, int Step = 1, class At>
FUSEDSTEP_INLINE auto fold_group(At&& at) {
  if constexpr (Step == kGroup)
    return at(First);
  else
    return fold_group<First, 2 * Step>(at) + fold_group<First + Step, 2 * Step>(at);
}

// Rows summed side by side. One chain of additions waits on its own latency; eight rows are more
// streams than the hardware prefetches. 2 beats 1, 4 and 8 (AMD EPYC, 2026-11-21).
constexpr int kAbreast = 2;

// The sum of squares of each of `rows` <= Rows rows of m columns, kAbreast at a time. `numbers(r, j,
// n)` returns n numbers of row r from column j on, in pairs if `pairs`.
template <class T, bool pairs = false, int Rows, class Numbers>
FUSEDSTEP_INLINE void row_square_sums(int64_t m, int rows, Numbers&& numbers, double (&total)[Rows]) {
  constexpr int kRows = Rows < kAbreast ? Rows : kAbreast;
  static_assert(Rows % kRows == 0);
#pragma GCC unroll 1
  for (int first = 0; first < rows; first += kRows) {
    for (int r = 0; r < kRows; ++r) total[first + r] = 0.0;
    for (int64_t tile = 0; tile < m; tile += kTile) {
      Lanes<T> sum[kRows];
      for (int r = 0; r < kRows; ++r) sum[r] = Lanes<T>(T(0));
      by_lanes<pairs ? kPairedLanes : kLanes>(
          std::min<int64_t>(kTile, m - tile), [&](int64_t j, auto n) FUSEDSTEP_LAMBDA {
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
              // Without a second row, the last one is summed twice.
              const auto x = numbers(std::min(first + r, rows - 1), tile + j, n);
              add_to_lanes(sum[r], x * x);
            }
          });
      for (int r = 0; r < kRows; ++r) total[first + r] += double(fold_lanes<T, pairs>(sum[r]));
    }
  }
}

// The sum of at most a tile of numbers.
template <class T, class S>
FUSEDSTEP_INLINE T tile_sum(const S* x, int64_t n) {
  Lanes<T> sum(T(0));
  by_lanes(n, [&](int64_t j, auto count) FUSEDSTEP_LAMBDA { sum += widen<T>(x + j, count); });
  return fold_lanes(sum);
}

// The sum of n stored numbers.
template <class T>
__attribute__((noinline)) double stored_sum(const Stored& from, int64_t n) {
  return with_storage(from.code, [&](auto* type) FUSEDSTEP_LAMBDA {
    const auto* x = reinterpret_cast<decltype(type)>(from.at);
    double total = 0.0;
    for (int64_t i = 0; i < n; i += kTile)
      total += double(tile_sum<T>(x + i, std::min<int64_t>(kTile, n - i)));
    return total;
  });
}

inline double sum_in_order(const double* x, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; ++i) total += x[i];
  return total;
}

}  // namespace
}  // namespace fusedstep
