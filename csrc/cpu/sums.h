// Sums along rows and down columns, in the one order that python/fusedstep/rules/layout.py lays down.
#pragma once

#include <algorithm>

#include "tile.h"

namespace fusedstep {
namespace {

// Columns that are converted at a time: the rows of a group fit the first-level cache.
constexpr int64_t kStrip = 256;
static_assert(kTile % kStrip == 0 && kStrip % kLanes == 0, "strips must not cut a tile or the lanes");

template <class T>
struct LanesOf {
  typedef T Vector __attribute__((vector_size(kLanes * sizeof(T))));
};
template <class T>
using Lanes = typename LanesOf<T>::Vector;

template <class V, class T>
FUSEDSTEP_INLINE V get(const T* from) {
  V x;
  std::memcpy(&x, from, sizeof(V));
  return x;
}

template <class V, class T>
FUSEDSTEP_INLINE void put(T* to, V x) {
  std::memcpy(to, &x, sizeof(V));
}

template <class T>
FUSEDSTEP_INLINE Lanes<T> get_partial(const T* from, int64_t n) {
  T padded[kLanes] = {};
  for (int64_t k = 0; k < n; ++k) padded[k] = from[k];
  return get<Lanes<T>>(padded);
}

template <class X, int N>
FUSEDSTEP_INLINE X fold(X (&x)[N]) {
  for (int half = N / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) x[k] += x[k + half];
  return x[0];
}

template <class T>
FUSEDSTEP_INLINE T fold_lanes(Lanes<T> x) {
  T lane[kLanes];
  put(lane, x);
  return fold(lane);
}

// Adds to each row's lanes the squares of `width` numbers.
template <class T, int Rows>
FUSEDSTEP_INLINE void add_squares(const T* const (&x)[Rows], int64_t width, Lanes<T> (&sum)[Rows]) {
  Lanes<T> acc[Rows];
  for (int r = 0; r < Rows; ++r) acc[r] = sum[r];
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      Lanes<T> v = get<Lanes<T>>(x[r] + j);
      acc[r] += v * v;
    }
  }
  if (j < width) {
    for (int r = 0; r < Rows; ++r) {
      Lanes<T> v = get_partial(x[r] + j, width - j);
      acc[r] += v * v;
    }
  }
  for (int r = 0; r < Rows; ++r) sum[r] = acc[r];
}

// The sums of squares of `Rows` rows of m columns; `strip(column, width, x)` points x at their numbers.
template <class T, int Rows, class Strip>
FUSEDSTEP_INLINE void row_square_sums(int64_t m, Strip&& strip, double (&total)[Rows]) {
  for (double& sum : total) sum = 0.0;
  for (int64_t tile = 0; tile < m; tile += kTile) {
    Lanes<T> lanes[Rows] = {};
    const int64_t end = std::min<int64_t>(tile + kTile, m);
    for (int64_t column = tile; column < end; column += kStrip) {
      const int64_t width = std::min(kStrip, end - column);
      const T* x[Rows];
      strip(column, width, x);
      add_squares(x, width, lanes);
    }
    for (int r = 0; r < Rows; ++r) total[r] += double(fold_lanes<T>(lanes[r]));
  }
}

// The sum of at most a tile of numbers.
template <class T>
inline T tile_sum(const T* x, int64_t n) {
  Lanes<T> acc = {};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) acc += get<Lanes<T>>(x + j);
  if (j < n) acc += get_partial(x + j, n - j);
  return fold_lanes<T>(acc);
}

// The sum of n stored numbers.
template <class T>
inline double stored_sum(Dtype dtype, const char* from, int64_t n) {
  T buffer[kTile];
  double total = 0.0;
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t width = std::min<int64_t>(kTile, n - i);
    const T* x = load(dtype, from + i * item_bytes(dtype), width, T(1), buffer);
    total += double(tile_sum(x, width));
  }
  return total;
}

inline double sum_in_order(const double* x, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; ++i) total += x[i];
  return total;
}

}  // namespace
}  // namespace fusedstep
