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

  char* row_at(int64_t i) const { return row + i * item_bytes(dtypes[2]); }
  char* col_at(int64_t j) const { return col + j * item_bytes(dtypes[3]); }
  int64_t offset(int slot, int64_t i, int64_t j) const {
    return (i * cols + j) * item_bytes(dtypes[slot]);
  }
};

template <class T>
const T kZeros[kStrip] = {};

// Up to kGroup rows of p or g; rows past the last one are zeros.
template <class T>
struct RowGroup {
  Dtype dtype;
  const char* first;
  int64_t cols;
  int count;
  T scale;
  T buffer[kGroup][kStrip];

  void operator()(int64_t column, int64_t width, const T* (&x)[kGroup]) {
    const int64_t item = item_bytes(dtype);
    for (int r = 0; r < kGroup; ++r)
      x[r] = r < count ? load(dtype, first + (r * cols + column) * item, width, scale, buffer[r])
                       : kZeros<T>;
  }
};

template <class T>
RowGroup<T> gradient_rows(const Matrix<T>& x, int64_t i, int64_t end) {
  RowGroup<T> group;
  group.dtype = x.dtypes[1], group.first = x.g + x.offset(1, i, 0), group.cols = x.cols;
  group.count = int(std::min<int64_t>(kGroup, end - i)), group.scale = x.grad_scale;
  return group;
}

// The sum of squares of the parameter's rows begin..end, which belong to one block or piece.
template <class T>
void add_parameter_squares(const Matrix<T>& x, int64_t begin, int64_t end, double& sum) {
  for (int64_t i = begin; i < end; i += kGroup) {
    RowGroup<T> group;
    group.dtype = x.dtypes[0], group.first = x.p + x.offset(0, i, 0), group.cols = x.cols;
    group.count = int(std::min<int64_t>(kGroup, end - i)), group.scale = T(1);
    double total[kGroup];
    row_square_sums<T>(x.cols, group, total);
    for (int r = 0; r < group.count; ++r) sum += total[r];
  }
}

// What kGroup rows add to the columns at j: the sum of g^2, and of g^2 / row.
template <class V, class T>
FUSEDSTEP_INLINE void add_columns(const T* const (&x)[kGroup], const T (&inverse)[kGroup], int64_t j,
                                  T* s, T* h) {
  V square[kGroup], weighted[kGroup];
#pragma GCC unroll 8
  for (int r = 0; r < kGroup; ++r) {
    V v = get<V>(x[r] + j);
    square[r] = v * v;
    weighted[r] = square[r] * inverse[r];
  }
  put(s + j, get<V>(s + j) + fold(square));
  put(h + j, get<V>(h + j) + fold(weighted));
}

// Read 1 of the rows begin..end of one block: `row`, and the block's part of the columns' sums.
// Returns the smallest `row`.
template <class T, class Rule>
double read_block(const Rule& rule, const Matrix<T>& x, int64_t begin, int64_t end, T* s, T* h) {
  std::fill(s, s + x.cols, T(0));
  std::fill(h, h + x.cols, T(0));
  double smallest = INFINITY;
  for (int64_t i = begin; i < end; i += kGroup) {
    RowGroup<T> group = gradient_rows(x, i, end);
    double total[kGroup];
    row_square_sums<T>(x.cols, group, total);

    T buffer[kGroup], inverse[kGroup] = {};
    T* row = load(x.dtypes[2], x.row_at(i), group.count, buffer);
    for (int r = 0; r < group.count; ++r)
      row[r] = rule.second_moment(row[r], T(total[r] / double(x.cols)));
    settle(x.dtypes[2], x.row_at(i), group.count, row);
    for (int r = 0; r < group.count; ++r) {
      inverse[r] = rule.inverse(row[r]);
      if (row[r] < smallest) smallest = row[r];
    }

    for (int64_t column = 0; column < x.cols; column += kStrip) {
      const int64_t width = std::min(kStrip, x.cols - column);
      const T* strip[kGroup];
      group(column, width, strip);
      int64_t j = 0;
      for (; j + kLanes <= width; j += kLanes)
        add_columns<Lanes<T>>(strip, inverse, j, s + column, h + column);
      for (; j < width; ++j) add_columns<T>(strip, inverse, j, s + column, h + column);
    }
  }
  return smallest;
}

template <class T, class Rule>
T mean_of_rows(const Rule& rule, const Matrix<T>& x) {
  return rule.floored_mean(T(stored_sum<T>(x.dtypes[2], x.row, x.rows) / double(x.rows)));
}

// One tile of columns, after all blocks were read: `col`, and the tile's part of sum(u^2) / mean(row)
// times mean(row). `partial` holds s then h of each block. Returns the smallest `col` by reference.
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
  for (int64_t j = 0; j < width; ++j)
    col[j] = rule.second_moment(col[j], T(s[j] / double(x.rows)));
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

// The sum of u^2 over the rows begin..end of one block.
template <class T, class Rule>
double block_energy(const Rule& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                    const T* factor) {
  double sum = 0.0;
  for (int64_t i = begin; i < end; i += kGroup) {
    RowGroup<T> group = gradient_rows(x, i, end);
    T buffer[kGroup], u[kGroup][kStrip];
    const T* row = load(x.dtypes[2], x.row_at(i), group.count, T(1), buffer);
    auto strip = [&](int64_t column, int64_t width, const T* (&at)[kGroup]) {
      const T* g[kGroup];
      group(column, width, g);
      for (int r = 0; r < kGroup; ++r) {
        at[r] = r < group.count ? u[r] : kZeros<T>;
        if (r >= group.count) continue;
        const T row_factor = rule.row_factor(row[r], mean);
        FUSEDSTEP_INDEPENDENT
        for (int64_t j = 0; j < width; ++j)
          u[r][j] = rule.damped(g[r][j], row_factor * factor[column + j]);
      }
    };
    double total[kGroup];
    row_square_sums<T>(x.cols, strip, total);
    for (int r = 0; r < group.count; ++r) sum += total[r];
  }
  return sum;
}

// Read 2 of the rows begin..end.
template <class T, bool Momentum, class Rule>
void update_rows(const Rule& rule, const Matrix<T>& x, int64_t begin, int64_t end, T mean,
                 const T* factor, T step_size, T keep) {
  T p_buffer[kStrip], g_buffer[kStrip], m_buffer[kStrip], row_buffer[kGroup];
  for (int64_t i = begin; i < end; ++i) {
    const T row = *load(x.dtypes[2], x.row_at(i), 1, T(1), row_buffer);
    const T row_factor = rule.row_factor(row, mean);
    for (int64_t column = 0; column < x.cols; column += kStrip) {
      const int64_t n = std::min(kStrip, x.cols - column);
      char* p_at = x.p + x.offset(0, i, column);
      const T* g = load(x.dtypes[1], x.g + x.offset(1, i, column), n, x.grad_scale, g_buffer);
      T* p = load(x.dtypes[0], p_at, n, p_buffer);
      const T* c = factor + column;
      if constexpr (Momentum) {
        char* m_at = x.m + x.offset(4, i, column);
        T* m = load(x.dtypes[4], m_at, n, m_buffer);
        FUSEDSTEP_INDEPENDENT
        for (int64_t j = 0; j < n; ++j)
          rule.update(p[j], m[j], rule.damped(g[j], row_factor * c[j]), step_size, keep);
        store(x.dtypes[4], m_at, n, m);
      } else {
        FUSEDSTEP_INDEPENDENT
        for (int64_t j = 0; j < n; ++j)
          rule.update(p[j], rule.damped(g[j], row_factor * c[j]), step_size, keep);
      }
      store(x.dtypes[0], p_at, n, p);
    }
  }
}

}  // namespace
}  // namespace fusedstep
