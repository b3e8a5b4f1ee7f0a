// The phases of a factored step on one matrix: read 1 by blocks of rows, its columns, read 2.
#pragma once

#include <algorithm>
#include <cmath>

#include "../plan.h"
#include "sums.h"

namespace fusedstep {
namespace {

// One matrix of a tensor: addresses, dtypes and sizes.
template <class T>
struct Matrix {
  const int64_t* dtypes;  // of p, g, row, col, m
  char *p, *row, *col, *m;
  const char* g;
  int64_t rows, cols;
  T grad_scale;
  bool at_once;  // the update follows read 1, without the rest of the tensor between them

  char* row_at(int64_t i) const { return row + i * item_bytes(dtypes[2]); }
  char* col_at(int64_t j) const { return col + j * item_bytes(dtypes[3]); }
  int64_t offset(int slot, int64_t i, int64_t j) const {
    return (i * cols + j) * item_bytes(dtypes[slot]);
  }
};

// Rows whose sums run side by side: one chain of additions would wait for itself, eight would read
// memory in more streams than the hardware follows (2 beat 1, 4 and 8 on AMD EPYC, 2026-11-21).
constexpr int kAbreast = 2;

// Up to kGroup rows of p or g in storage type S. Rows past the last one are zeros.
template <class T, class S>
struct RowGroup {
  const S* first;
  int64_t cols;
  int count;
  T scale;

  RowGroup(const char* first, int64_t cols, int64_t rows, T scale)
      : first(reinterpret_cast<const S*>(first)),
        cols(cols),
        count(int(std::min<int64_t>(kGroup, rows))),
        scale(scale) {}

  template <class N>
  FUSEDSTEP_INLINE Lanes<T> operator()(int r, int64_t j, N n) const {
    if (r >= count) return Lanes<T>{};
    const S* from = first + r * cols + j;
    if constexpr (std::is_same_v<N, int64_t>)
      return widen_partial<T>(from, n) * scale;
    else
      return widen_lanes<T>(from) * scale;
  }
};

// Asks for memory that will be read soon: hardware follows neither eight rows at once nor a jump to the
// next small tensor.
inline void fetch_lines(const char* from, int64_t bytes) {
  for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch(from + k);
}

// Adds the parameter's squares, row after row, to the sum of their block or piece.
template <class T>
void add_parameter_squares(const Matrix<T>& x, int64_t begin, int64_t end, double& sum) {
  with_storage(x.dtypes[0], [&](auto* storage) {
    using S = std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>;
    for (int64_t i = begin; i < end; ++i) {
      double total[1];
      row_square_sums<T>(x.cols, RowGroup<T, S>(x.p + x.offset(0, i, 0), x.cols, 1, T(1)), total);
      sum += total[0];
    }
  });
}

// The sums of g^2 and of g^2 / row.
template <class T>
struct ColumnSums {
  Lanes<T> s, h;
  FUSEDSTEP_INLINE ColumnSums operator+(const ColumnSums& other) const {
    return {s + other.s, h + other.h};
  }
};

// Adds what kGroup rows have at the n columns from j on.
template <class T, class S, class N>
FUSEDSTEP_INLINE void add_columns(const RowGroup<T, S>& group, const T (&inverse)[kGroup], int64_t j,
                                  N n, T* s, T* h) {
  const ColumnSums<T> sums = fold_group([&](int r) FUSEDSTEP_LAMBDA {
    const Lanes<T> g = group(r, j, n);
    return ColumnSums<T>{g * g, g * g * inverse[r]};
  });
  if constexpr (std::is_same_v<N, int64_t>) {
    for (int64_t k = 0; k < n; ++k) s[j + k] += sums.s[k], h[j + k] += sums.h[k];
  } else {
    put(s + j, get<Lanes<T>>(s + j) + sums.s);
    put(h + j, get<Lanes<T>>(h + j) + sums.h);
  }
}

// Read 1 of the rows begin..end of one block: `row`, and the block's part of the columns' sums.
// Returns the smallest `row`.
template <class T, class S, class Rule>
double read_block(const Rule& rule, const Matrix<T>& x, int64_t begin, int64_t end, T* s, T* h) {
  constexpr std::integral_constant<int64_t, kLanes> all;
  std::fill(s, s + x.cols, T(0));
  std::fill(h, h + x.cols, T(0));
  double smallest = INFINITY;
  for (int64_t i = begin; i < end; i += kGroup) {
    const RowGroup<T, S> group(x.g + x.offset(1, i, 0), x.cols, end - i, x.grad_scale);
    if (x.at_once) fetch_lines(x.p + x.offset(0, i, 0), x.offset(0, group.count, 0));
    double total[kGroup];
    for (int first = 0; first < kGroup; first += kAbreast) {
      auto rows = [&](int r, int64_t j, auto n) FUSEDSTEP_LAMBDA { return group(first + r, j, n); };
      double part[kAbreast];
      row_square_sums<T>(x.cols, rows, part);
      for (int r = 0; r < kAbreast; ++r) total[first + r] = part[r];
    }

    T buffer[kGroup], inverse[kGroup] = {};
    T* row = load(x.dtypes[2], x.row_at(i), group.count, buffer);
    for (int r = 0; r < group.count; ++r)
      row[r] = rule.second_moment(row[r], T(total[r] / double(x.cols)));
    settle(x.dtypes[2], x.row_at(i), group.count, row);
    for (int r = 0; r < group.count; ++r) {
      inverse[r] = rule.inverse(row[r]);
      if (row[r] < smallest) smallest = row[r];
    }

    // The rows are in the cache now: time to ask for the next ones, of the next matrix in the end.
    const S* next = reinterpret_cast<const S*>(x.g + x.offset(1, i + kGroup, 0));
    int64_t j = 0;
    for (; j + kLanes <= x.cols; j += kLanes) {
      if (!x.at_once)
        for (int r = 0; r < kGroup; ++r) __builtin_prefetch(next + r * x.cols + j);
      add_columns(group, inverse, j, all, s, h);
    }
    if (j < x.cols) add_columns(group, inverse, j, x.cols - j, s, h);
  }
  return smallest;
}

template <class T, class Rule>
double read_block(const Rule& rule, const Matrix<T>& x, int64_t begin, int64_t end, T* s, T* h) {
  return with_storage(x.dtypes[1], [&](auto* storage) {
    using S = std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>;
    return read_block<T, S>(rule, x, begin, end, s, h);
  });
}

template <class T, class Rule>
T mean_of_rows(const Rule& rule, const Matrix<T>& x) {
  return rule.floored_mean(T(stored_sum<T>(x.dtypes[2], x.row, x.rows) / double(x.rows)));
}

// One tile of columns, after all blocks were read: `col`, and the tile's part of sum(u^2). `partial`
// holds s then h of each block. Returns the smallest `col` by reference.
template <class T, class Rule>
double finish_columns(const Rule& rule, const Matrix<T>& x, const T* partial, T mean, int64_t column,
                      double& smallest) {
  const int64_t width = std::min<int64_t>(kTile, x.cols - column);
  const int64_t blocks = (x.rows + kBlock - 1) / kBlock;
  double s[kTile], h[kTile];
  std::fill(s, s + width, 0.0);
  std::fill(h, h + width, 0.0);
  for (int64_t b = 0; b < blocks; ++b) {
    const T* block_s = partial + 2 * b * x.cols + column;
    const T* block_h = block_s + x.cols;
    FUSEDSTEP_INDEPENDENT
    for (int64_t j = 0; j < width; ++j) s[j] += double(block_s[j]), h[j] += double(block_h[j]);
  }
  T buffer[kTile], energy[kTile];
  T* col = load(x.dtypes[3], x.col_at(column), width, buffer);
  FUSEDSTEP_INDEPENDENT
  for (int64_t j = 0; j < width; ++j) col[j] = rule.second_moment(col[j], T(s[j] / double(x.rows)));
  settle(x.dtypes[3], x.col_at(column), width, col);
  FUSEDSTEP_INDEPENDENT
  for (int64_t j = 0; j < width; ++j) energy[j] = rule.col_energy(T(h[j]), col[j], mean);
  T least = T(INFINITY);
  for (int64_t j = 0; j < width; ++j) least = col[j] < least ? col[j] : least;
  smallest = least;
  return double(tile_sum(energy, width));
}

// Whether some factor of the matrix is above the cap: then sum(u^2) has to be summed over elements.
template <class T, class Rule>
bool is_capped(const Rule& rule, T smallest_row, T smallest_col, T mean) {
  return rule.row_factor(smallest_row, mean) * rule.col_factor(smallest_col) > rule.cap;
}

// The column factors of the whole matrix, into `factor`.
template <class T, class Rule>
void column_factors(const Rule& rule, const Matrix<T>& x, T* factor) {
  const T* col = load(x.dtypes[3], x.col, x.cols, T(1), factor);
  FUSEDSTEP_INDEPENDENT
  for (int64_t j = 0; j < x.cols; ++j) factor[j] = rule.col_factor(col[j]);
}

// The row factors of up to kGroup rows; `count` of them are of use.
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
double block_energy(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
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
        // Lane by lane: a padded column factor of zero would meet an infinite row factor.
        T u[kLanes] = {};
        const Lanes<T> g = group(r, j, n);
        for (int64_t k = 0; k < n; ++k) u[k] = rule.damped(g[k], row_factor[r] * col_factor[j + k]);
        return get<Lanes<T>>(u);
      } else {
        return lanes_rule.damped(group(r, j, n), row_factor[r] * get<Lanes<T>>(col_factor + j));
      }
    };
    double total[kGroup];
    row_square_sums<T>(x.cols, update, total);
    for (int r = 0; r < group.count; ++r) sum += total[r];
  }
  return sum;
}

template <class T>
double block_energy(const Adafactor<T>& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                    const T* col_factor) {
  return with_storage(x.dtypes[1], [&](auto* storage) {
    using S = std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>;
    return block_energy<T, S>(rule, x, begin, end, mean, col_factor);
  });
}

// n <= kLanes numbers of p, and of m if there is one, after their update. Full lanes have their n known
// when compiled.
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
  const Lanes<T> u = rule.damped(g * scale, row_factor * c);
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

// Read 2 of the rows begin..end. The squares of the parameter before its update are added to `squares`;
// where `next_gradient` is given, the next tensor's gradient is fetched on the way.
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
      char* m_at = Momentum ? x.m + x.offset(4, i, tile) : nullptr;
      T* m = Momentum ? load(x.dtypes[4], m_at, tile_end - tile, m_buffer) - tile : nullptr;
      Lanes<T> sum = {};
      int64_t j = tile;
      for (; j + kLanes <= tile_end; j += kLanes)
        update_lanes(lanes_rule, p + j, g + j, Momentum ? m + j : nullptr, col_factor + j, r,
                     x.grad_scale, step_lanes, decay_lanes, all, sum);
      if (j < tile_end)
        update_lanes(lanes_rule, p + j, g + j, Momentum ? m + j : nullptr, col_factor + j, r,
                     x.grad_scale, step_lanes, decay_lanes, tile_end - j, sum);
      if (Momentum) store(x.dtypes[4], m_at, tile_end - tile, m + tile);
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
