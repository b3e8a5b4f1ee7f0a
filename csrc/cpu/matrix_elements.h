// What a factored step does with each element of a matrix: sum(u^2) of capped updates, and read 2.
#pragma once

#include <algorithm>

#include "../rules/adafactor.h"
#include "elementwise.h"
#include "matrix.h"

namespace fusedstep {
namespace {

// Writes the column factors of the whole matrix to `factor`.
template <class T, class Rule>
void column_factors(const Rule& rule, const Matrix<T>& x, T* factor) {
  const T* col = load(x.dtypes[3], x.col, x.cols, factor);
  FUSEDSTEP_INDEPENDENT
  for (int64_t j = 0; j < x.cols; ++j) factor[j] = rule.col_factor(col[j]);
}

// Writes the row factors of up to kGroup rows. Returns how many rows there are.
template <class T, class Rule>
FUSEDSTEP_INLINE int row_factors(const Rule& rule, const Matrix<T>& x, int64_t i, int64_t end, T mean,
                                 T (&factor)[kGroup]) {
  const int count = int(std::min<int64_t>(kGroup, end - i));
  T buffer[kGroup], row[kGroup] = {};
  const T* stored = load(x.dtypes[2], x.row_at(i), count, buffer);
  for (int r = 0; r < count; ++r) row[r] = stored[r];
  for (int r = 0; r < kGroup; ++r) factor[r] = rule.row_factor(row[r], mean);
  return count;
}

// Adds the sum of u^2 over the rows begin..end of one block to `sum`, and returns it. The rule runs on
// kLanes numbers at once.
template <class T, class S>
double block_sum_u2(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                    const T* col_factor, double sum) {
  const Adafactor<Lanes<T>> lanes_rule = on_lanes(rule);
  for (int64_t i = begin; i < end; i += kGroup) {
    const RowGroup<T, S> group = gradient_rows<T, S>(x, i, end);
    T row_factor[kGroup];
    row_factors(rule, x, i, end, mean, row_factor);
    auto update = [&](int r, int64_t j, auto n) FUSEDSTEP_LAMBDA {
      const Lanes<T> factor = Lanes<T>(row_factor[r]) * widen<T>(col_factor + j, n);
      // The lanes after n must be zeros: zero times an infinite row factor would be nan.
      return first_lanes(lanes_rule.precondition(group(r, j, n), factor), n);
    };
    double total[kGroup];
    row_square_sums<T>(x.cols, update, total);
    for (int r = 0; r < group.count; ++r) sum += total[r];
  }
  return sum;
}

template <class T>
double block_sum_u2(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                    const T* col_factor, double sum = 0.0) {
  return with_gradient_storage(x, [&](auto* storage) {
    using S = std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>;
    return block_sum_u2<T, S>(rule, x, begin, end, mean, col_factor, sum);
  });
}

// Read 2 of the rows begin..end. Adds the squares of the old parameter to `squares`. Prefetches the
// next tensor's gradient if `next_gradient` is given. If G is T, the gradient may have any dtype.
template <class T, bool Momentum, class P, class G>
void update_rows(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                 const T* col_factor, T step_size, T decay, double& squares,
                 const char* next_gradient) {
  const Adafactor<Lanes<T>> lanes_rule = on_lanes(rule);
  const Lanes<T> scale(x.grad_scale), step_lanes(step_size), decay_lanes(decay);
  T m_buffer[Momentum ? kTile : 1], g_buffer[std::is_same_v<G, T> ? kTile : 1], row_factor[kGroup];
  for (int64_t i = begin; i < end; ++i) {
    if ((i - begin) % kGroup == 0) {
      const int count = row_factors(rule, x, i, end, mean, row_factor);
      if (next_gradient != nullptr)
        fetch_lines(next_gradient + x.offset(1, i, 0), x.offset(1, count, 0));
    }
    const Lanes<T> r(row_factor[(i - begin) % kGroup]);
    double row_squares = 0.0;
    for (int64_t tile = 0; tile < x.cols; tile += kTile) {
      const int64_t width = std::min<int64_t>(kTile, x.cols - tile);
      P* p = reinterpret_cast<P*>(x.p) + i * x.cols + tile;
      const char* g_at = x.g + x.offset(MatrixRow::kG, i, tile);
      const G* g = reinterpret_cast<const G*>(g_at);
      if constexpr (std::is_same_v<G, T>) g = load(x.dtypes[MatrixRow::kG], g_at, width, g_buffer);
      [[maybe_unused]] char* m_at = x.m + x.offset(MatrixRow::kMomentum, i, tile);
      [[maybe_unused]] T* m = nullptr;
      if constexpr (Momentum) m = load(x.dtypes[MatrixRow::kMomentum], m_at, width, m_buffer);
      Lanes<T> sum(T(0));
      by_lanes(width, [&](int64_t j, auto n) FUSEDSTEP_LAMBDA {
        Lanes<T> now = widen<T>(p + j, n);
        sum += now * now;
        const Lanes<T> factor = r * widen<T>(col_factor + tile + j, n);
        const Lanes<T> u = lanes_rule.precondition(widen<T>(g + j, n) * scale, factor);
        if constexpr (Momentum) {
          Lanes<T> momentum = widen<T>(m + j, n);
          lanes_rule.update(now, momentum, u, step_lanes, decay_lanes);
          narrow(m + j, momentum, n, Place{});
        } else {
          lanes_rule.update(now, u, step_lanes, decay_lanes);
        }
        narrow(p + j, now, n, x.place(i, tile + j));
      });
      if constexpr (Momentum) store(x.dtypes[MatrixRow::kMomentum], m_at, width, m, x.place(i, tile));
      row_squares += double(fold_lanes(sum));
    }
    squares += row_squares;
  }
}

template <class T, bool Momentum>
void update_rows(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                 const T* col_factor, T step_size, T decay, double& squares,
                 const char* next_gradient) {
  with_parameter_storage<T>(x.dtypes[MatrixRow::kP], [&](auto* type) {
    using P = std::remove_cv_t<std::remove_pointer_t<decltype(type)>>;
    const bool alike = x.dtypes[MatrixRow::kG] == x.dtypes[MatrixRow::kP];
    auto update = alike ? update_rows<T, Momentum, P, P> : update_rows<T, Momentum, P, T>;
    update(rule, x, begin, end, mean, col_factor, step_size, decay, squares, next_gradient);
  });
}

}  // namespace
}  // namespace fusedstep
