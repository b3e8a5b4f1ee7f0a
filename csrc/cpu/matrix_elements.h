// What a factored step does with each element of a matrix: sum(u^2) of capped updates, and read 2.
#pragma once

#include <algorithm>

#include "../rules/adafactor.h"
#include "elementwise.h"
#include "matrix.h"

namespace fusedstep {
namespace {

// Writes the column factors of the whole matrix to `factor`. They are put in the order of S, except
// the last if they are fewer than a loop over S takes at a time.
template <class S, class T, class Rule>
void column_factors(const Rule& rule, const Matrix<T>& x, T* factor) {
  const T* col = load(x.col, x.cols, factor);
  FUSEDSTEP_INDEPENDENT
  for (int64_t j = 0; j < x.cols; ++j) factor[j] = rule.col_factor(col[j]);
  if constexpr (kInPairs<S>)
    for (int64_t j = 0; j + kPairedLanes <= x.cols; j += kPairedLanes)
      put_lanes(factor + j, to_pairs(get_lanes<kPairedLanes>(factor + j)));
}

// Writes the row factors of up to kGroup rows. Returns how many rows there are.
template <class T, class Rule>
FUSEDSTEP_INLINE int row_factors(const Rule& rule, const Matrix<T>& x, int64_t i, int64_t end, T mean,
                                 T (&factor)[kGroup]) {
  const int count = int(std::min<int64_t>(kGroup, end - i));
  T buffer[kGroup], row[kGroup] = {};
  const T* stored = load(x.row.from(i), count, buffer);
  for (int r = 0; r < count; ++r) row[r] = stored[r];
  for (int r = 0; r < kGroup; ++r) factor[r] = rule.row_factor(row[r], mean);
  return count;
}

// Adds the sum of u^2 over the rows begin..end of one block to `sum`, and returns it. The rule runs on
// many numbers at once. Makes the column factors in `col_factor`.
template <class T, class S>
double block_sum_u2(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                    T* col_factor, double sum) {
  constexpr int kCount = kLanesOf<S>;
  using Numbers = Lanes<T, kCount>;
  const Adafactor<Numbers> lanes_rule = on_lanes<kCount>(rule);
  column_factors<S>(rule, x, col_factor);
  for (int64_t i = begin; i < end; i += kGroup) {
    const RowGroup<T, S> group = gradient_rows<T, S>(x, i, end);
    T row_factor[kGroup];
    row_factors(rule, x, i, end, mean, row_factor);
    auto update = [&](int r, int64_t j, auto n) FUSEDSTEP_LAMBDA {
      constexpr bool reorder = kInPairs<S> && !std::is_same_v<decltype(n), All>;
      Numbers factor = widen<T, kCount>(col_factor + j, n);
      if constexpr (reorder) factor = to_pairs(factor);
      const Numbers u = lanes_rule.precondition(group(r, j, n), Numbers(row_factor[r]) * factor);
      // Zeros come after n numbers: zero times an infinite row factor would be nan.
      if constexpr (reorder)
        return to_pairs(first_lanes(from_pairs(u), n));
      else
        return first_lanes(u, n);
    };
    double total[kGroup];
    row_square_sums<T, kInPairs<S>>(x.cols, group.count, update, total);
    for (int r = 0; r < group.count; ++r) sum += total[r];
  }
  return sum;
}

template <class T>
double block_sum_u2(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                    T* col_factor, double sum = 0.0) {
  return with_gradient_storage(x, [&](auto* storage) {
    using S = AnyOrder<std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>>;
    return block_sum_u2<T, S>(rule, x, begin, end, mean, col_factor, sum);
  });
}

// Read 2 of the rows begin..end. Adds the squares of the old parameter to `squares` if `Squares`.
// Prefetches the next tensor's gradient if `next_gradient` is given. If P, G or M is T, that slot may
// be stored in any way. Column factors are in the order of P, except the last if they are fewer than
// kCount.
template <class T, bool Momentum, bool Squares, class P, class G, class M>
void update_rows(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                 const T* col_factor, T step_size, T decay, double* squares,
                 const Stored* next_gradient) {
  constexpr int kCount = kLanesOf<P>;
  using Numbers = Lanes<T, kCount>;
  const Adafactor<Numbers> lanes_rule = on_lanes<kCount>(rule);
  const Numbers scale(x.grad_scale), step_lanes(step_size), decay_lanes(decay);
  T p_buffer[std::is_same_v<P, T> ? kTile : 1], g_buffer[std::is_same_v<G, T> ? kTile : 1];
  T row_factor[kGroup];
  [[maybe_unused]] T m_buffer[std::is_same_v<M, T> ? kTile : 1];
  for (int64_t i = begin; i < end; ++i) {
    if ((i - begin) % kGroup == 0) {
      const int count = row_factors(rule, x, i, end, mean, row_factor);
      if (next_gradient != nullptr) fetch_lines(*next_gradient, x.element(i), x.element(count));
    }
    const Numbers r(row_factor[(i - begin) % kGroup]);
    const Place row = x.row_place(i);
    double row_squares = 0.0;
    for (int64_t tile = 0; tile < x.cols; tile += kTile) {
      const int64_t width = std::min<int64_t>(kTile, x.cols - tile);
      const int64_t first = x.element(i, tile);
      const Stored p_at = x.p.from(first), g_at = x.g.from(first);
      Cursor<P> p = cursor<P>(p_at);
      const G* g = cursor<G>(g_at);
      if constexpr (std::is_same_v<P, T>) p = load(p_at, width, p_buffer);
      if constexpr (std::is_same_v<G, T>) g = load(g_at, width, g_buffer);
      [[maybe_unused]] const Stored m_at = Momentum ? x.m.from(first) : x.m;
      [[maybe_unused]] M* m = cursor<M>(m_at);
      if constexpr (Momentum && std::is_same_v<M, T>) m = load(m_at, width, m_buffer);
      [[maybe_unused]] Lanes<T> sum(T(0));
      by_lanes<kCount>(width, [&](int64_t j, auto n) FUSEDSTEP_LAMBDA {
        constexpr bool reorder = kInPairs<P> && !std::is_same_v<decltype(n), All>;
        if constexpr (Momentum) fetch_ahead<2048>(m + j);
        fetch_ahead<2048>(p + j);  // a tenth of read 2 in memory (AMD EPYC, 2026-11-26)
        fetch_ahead<2048>(g + j);
        const Place place = row.plus(tile + j);
        Numbers now = widen<T, kCount>(p + j, n), factor = widen<T, kCount>(col_factor + tile + j, n);
        if constexpr (Squares) add_to_lanes(sum, now * now);
        if constexpr (reorder) factor = to_pairs(factor);
        const Numbers u = lanes_rule.precondition(widen<T, kCount>(g + j, n) * scale, r * factor);
        if constexpr (Momentum) {
          Numbers momentum = widen<T, kCount>(m + j, n);
          lanes_rule.update(now, momentum, u, step_lanes, decay_lanes);
          narrow(m + j, momentum, n, place.of(MatrixRow::kMomentum));
        } else {
          lanes_rule.update(now, u, step_lanes, decay_lanes);
        }
        narrow(p + j, now, n, place);
      });
      if constexpr (std::is_same_v<P, T>) store(p_at, width, p, row.plus(tile));
      if constexpr (Momentum && std::is_same_v<M, T>)
        store(m_at, width, m, row.plus(tile).of(MatrixRow::kMomentum));
      if constexpr (Squares) row_squares += double(fold_lanes<T, kInPairs<P>>(sum));
    }
    if constexpr (Squares) *squares += row_squares;
  }
}

// The same for the storage of a matrix. Makes the column factors in `factor`. `squares` may be null.
template <class T, bool Momentum>
void update_rows(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                 T* factor, T step_size, T decay, double* squares, const Stored* next_gradient) {
  double unwanted = 0.0, *wanted = squares != nullptr ? squares : &unwanted;
  bool alike = x.g.code == x.p.code;
  if (Momentum) alike &= x.m.code == x.p.code;
  if constexpr (!Momentum && std::is_same_v<T, float>)
    if (x.g.code == kBfloat16 && x.p.code >= kNoisyBfloat16 && x.p.code <= kRest8)
      return with_one_of<kNoisyBfloat16, kRest16, kRest8>(x.p.code, [&](auto* type) {
        using P = AnyOrder<std::remove_cv_t<std::remove_pointer_t<decltype(type)>>>;
        using G = AnyOrder<Bfloat16>;
        column_factors<P>(rule, x, factor);
        update_rows<T, false, true, P, G, G>(rule, x, begin, end, mean, factor, step_size, decay,
                                             wanted, next_gradient);
      });
  if (!alike) {
    column_factors<T>(rule, x, factor);
    return update_rows<T, Momentum, true, T, T, T>(rule, x, begin, end, mean, factor, step_size, decay,
                                                   wanted, next_gradient);
  }
  with_usual_storage<T>(x.p.code, [&](auto* type) {
    using P = AnyOrder<std::remove_cv_t<std::remove_pointer_t<decltype(type)>>>;
    column_factors<P>(rule, x, factor);
    auto update = update_rows<T, Momentum, true, P, P, P>;
    // More kinds of loops would take long to compile.
    if constexpr (!Momentum && !std::is_same_v<P, Float16>)
      if (squares == nullptr) update = update_rows<T, Momentum, false, P, P, P>;
    update(rule, x, begin, end, mean, factor, step_size, decay, wanted, next_gradient);
  });
}

}  // namespace
}  // namespace fusedstep
