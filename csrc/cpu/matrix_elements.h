// What a factored step does with each element of a matrix: sum(u^2) of capped updates, and read 2.
#pragma once

#include <algorithm>

#include "../rules/adafactor.h"
#include "matrix.h"

namespace fusedstep {
namespace {

// Writes the column factors of the whole matrix to `factor`.
template <class T, class Rule>
void column_factors(const Rule& rule, const Matrix<T>& x, T* factor) {
  const T* col = load(x.dtypes[3], x.col, x.cols, T(1), factor);
  FUSEDSTEP_INDEPENDENT
  for (int64_t j = 0; j < x.cols; ++j) factor[j] = rule.col_factor(col[j]);
}

// Writes the row factors of up to kGroup rows. Returns how many rows there are.
template <class T, class Rule>
FUSEDSTEP_INLINE int row_factors(const Rule& rule, const Matrix<T>& x, int64_t i, int64_t end, T mean,
                                 T (&factor)[kGroup]) {
  const int count = int(std::min<int64_t>(kGroup, end - i));
  T buffer[kGroup], row[kGroup] = {};
  const T* stored = load(x.dtypes[2], x.row_at(i), count, T(1), buffer);
  for (int r = 0; r < count; ++r) row[r] = stored[r];
  for (int r = 0; r < kGroup; ++r) factor[r] = rule.row_factor(row[r], mean);
  return count;
}

// The sum of u^2 over the rows begin..end of one block. The rule runs on kLanes numbers at once.
template <class T, class S>
double block_sum_u2(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                    const T* col_factor) {
  Adafactor<Lanes<T>> lanes_rule;
  lanes_rule.cap = Lanes<T>{} + rule.cap;
  double sum = 0.0;
  for (int64_t i = begin; i < end; i += kGroup) {
    const RowGroup<T, S> group(x.g + x.offset(1, i, 0), x.cols, end - i, x.grad_scale);
    T row_factor[kGroup];
    row_factors(rule, x, i, end, mean, row_factor);
    auto update = [&](int r, int64_t j, auto n) FUSEDSTEP_LAMBDA {
      if constexpr (std::is_same_v<decltype(n), int64_t>) {
        // Lane by lane: a padding zero times an infinite row factor would be nan.
        T u[kLanes] = {};
        const Lanes<T> g = group(r, j, n);
        for (int64_t k = 0; k < n; ++k)
          u[k] = rule.precondition(g[k], row_factor[r] * col_factor[j + k]);
        return get<Lanes<T>>(u);
      } else {
        return lanes_rule.precondition(group(r, j, n), row_factor[r] * get<Lanes<T>>(col_factor + j));
      }
    };
    double total[kGroup];
    row_square_sums<T>(x.cols, update, total);
    for (int r = 0; r < group.count; ++r) sum += total[r];
  }
  return sum;
}

template <class T>
double block_sum_u2(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                    const T* col_factor) {
  return with_storage(x.dtypes[1], [&](auto* storage) {
    using S = std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>;
    return block_sum_u2<T, S>(rule, x, begin, end, mean, col_factor);
  });
}

// Updates n <= kLanes numbers of p, and of m if there is one. For full lanes, n is a compile-time
// constant.
template <class T, class P, class G, class N>
FUSEDSTEP_INLINE void update_lanes(const Adafactor<Lanes<T>>& rule, P* p_at, const G* g_at, T* m_at,
                                   const T* col_factor, T row_factor, T scale, Lanes<T> step_size,
                                   Lanes<T> decay, N n, Lanes<T>& squares) {
  Lanes<T> p, g, c, m = {};
  if constexpr (std::is_same_v<N, int64_t>) {
    p = widen_partial<T>(p_at, n), g = widen_partial<T>(g_at, n), c = widen_partial<T>(col_factor, n);
    if (m_at != nullptr) m = widen_partial<T>(m_at, n);
  } else {
    p = widen_lanes<T>(p_at), g = widen_lanes<T>(g_at), c = get<Lanes<T>>(col_factor);
    if (m_at != nullptr) m = get<Lanes<T>>(m_at);
  }
  squares += p * p;
  const Lanes<T> u = rule.precondition(g * scale, row_factor * c);
  if (m_at != nullptr)
    rule.update(p, m, u, step_size, decay);
  else
    rule.update(p, u, step_size, decay);
  if constexpr (std::is_same_v<N, int64_t>) {
    narrow_partial<T>(p_at, p, n);
    if (m_at != nullptr) narrow_partial<T>(m_at, m, n);
  } else {
    narrow_lanes<T>(p_at, p);
    if (m_at != nullptr) put(m_at, m);
  }
}

// Read 2 of the rows begin..end. Adds the squares of the old parameter to `squares`. Prefetches the
// next tensor's gradient if `next_gradient` is given.
template <class T, bool Momentum, class P, class G>
void update_rows(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                 const T* col_factor, T step_size, T decay, double& squares,
                 const char* next_gradient) {
  constexpr std::integral_constant<int64_t, kLanes> all;
  Adafactor<Lanes<T>> lanes_rule;
  lanes_rule.cap = Lanes<T>{} + rule.cap;
  lanes_rule.beta1 = Lanes<T>{} + rule.beta1;
  lanes_rule.one_minus_beta1 = Lanes<T>{} + rule.one_minus_beta1;
  const Lanes<T> step_lanes = Lanes<T>{} + step_size, decay_lanes = Lanes<T>{} + decay;
  T m_buffer[Momentum ? kTile : 1], row_factor[kGroup];
  for (int64_t i = begin; i < end; ++i) {
    if ((i - begin) % kGroup == 0) {
      const int count = row_factors(rule, x, i, end, mean, row_factor);
      if (next_gradient != nullptr)
        fetch_lines(next_gradient + x.offset(1, i, 0), x.offset(1, count, 0));
    }
    P* p = reinterpret_cast<P*>(x.p) + i * x.cols;
    const G* g = reinterpret_cast<const G*>(x.g) + i * x.cols;
    const T r = row_factor[(i - begin) % kGroup];
    double row_squares = 0.0;
    for (int64_t tile = 0; tile < x.cols; tile += kTile) {
      const int64_t tile_end = std::min<int64_t>(tile + kTile, x.cols);
      char* m_at = Momentum ? x.m + x.offset(MatrixRow::kMomentum, i, tile) : nullptr;
      T* m = Momentum ? load(x.dtypes[MatrixRow::kMomentum], m_at, tile_end - tile, m_buffer) - tile
                      : nullptr;
      Lanes<T> sum = {};
      int64_t j = tile;
      for (; j + kLanes <= tile_end; j += kLanes)
        update_lanes(lanes_rule, p + j, g + j, Momentum ? m + j : nullptr, col_factor + j, r,
                     x.grad_scale, step_lanes, decay_lanes, all, sum);
      if (j < tile_end)
        update_lanes(lanes_rule, p + j, g + j, Momentum ? m + j : nullptr, col_factor + j, r,
                     x.grad_scale, step_lanes, decay_lanes, tile_end - j, sum);
      if (Momentum) store(x.dtypes[MatrixRow::kMomentum], m_at, tile_end - tile, m + tile);
      row_squares += double(fold_lanes<T>(sum));
    }
    squares += row_squares;
  }
}

template <class T, bool Momentum>
void update_rows(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                 const T* col_factor, T step_size, T decay, double& squares,
                 const char* next_gradient) {
  with_storage(x.dtypes[0], [&](auto* p) {
    with_storage(x.dtypes[1], [&](auto* g) {
      using P = std::remove_cv_t<std::remove_pointer_t<decltype(p)>>;
      using G = std::remove_cv_t<std::remove_pointer_t<decltype(g)>>;
      update_rows<T, Momentum, P, G>(rule, x, begin, end, mean, col_factor, step_size, decay, squares,
                                     next_gradient);
    });
  });
}

}  // namespace
}  // namespace fusedstep
