// Sums and moments of one matrix in a factored step: read 1 by blocks of rows, then the columns.
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
  bool at_once;    // the update directly follows read 1
  int64_t tensor;  // in the launch
  int64_t number;  // of the matrix in its tensor
  T* converted;    // room for a group of the gradient's rows

  char* row_at(int64_t i) const { return row + i * item_bytes(dtypes[2]); }
  char* col_at(int64_t j) const { return col + j * item_bytes(dtypes[3]); }
  int64_t offset(int slot, int64_t i, int64_t j) const {
    return (i * cols + j) * item_bytes(dtypes[slot]);
  }
  Place place(int64_t i, int64_t j) const { return {tensor, (number * rows + i) * cols + j}; }
  Place row_place(int64_t i) const { return {tensor, number * rows + i}; }
  Place col_place(int64_t j) const { return {tensor, number * cols + j}; }
};

// Up to kGroup rows in storage type S. Missing rows are zeros.
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
    if (r >= count) return Lanes<T>(T(0));
    return widen<T>(first + r * cols + j, n) * Lanes<T>(scale);
  }
};

// Rows of the gradient, from row i on. If S is T, it may be stored in any dtype.
template <class T, class S>
FUSEDSTEP_INLINE RowGroup<T, S> gradient_rows(const Matrix<T>& x, int64_t i, int64_t end) {
  RowGroup<T, S> group(x.g + x.offset(MatrixRow::kG, i, 0), x.cols, end - i, x.grad_scale);
  if constexpr (std::is_same_v<S, T>)
    group.first = load(x.dtypes[MatrixRow::kG], reinterpret_cast<const char*>(group.first),
                       group.count * x.cols, x.converted);
  return group;
}

// Calls `function` with a null pointer of the gradient's storage type: that of the parameter, or T
// for any other. More kinds of loops would take long to compile.
template <class T, class Function>
FUSEDSTEP_INLINE auto with_gradient_storage(const Matrix<T>& x, Function&& function) {
  const Dtype own = x.dtypes[MatrixRow::kP];
  if (x.dtypes[MatrixRow::kG] == own) return with_parameter_storage<T>(own, function);
  return function(static_cast<const T*>(nullptr));
}

// Prefetches memory. The hardware follows neither eight rows nor a jump to the next small tensor.
inline void fetch_lines(const char* from, int64_t bytes) {
  for (int64_t k = 0; k < bytes; k += 64) __builtin_prefetch(from + k);
}

// Adds the parameter's squares, row by row, to the sum of their block or piece.
template <class T>
void add_parameter_squares(const Matrix<T>& x, int64_t begin, int64_t end, double& sum) {
  with_parameter_storage<T>(x.dtypes[MatrixRow::kP], [&](auto* storage) {
    using S = AnyOrder<std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>>;
    for (int64_t i = begin; i < end; ++i) {
      double total[1];
      row_square_sums<T, kInPairs<S>>(x.cols, RowGroup<T, S>(x.p + x.offset(0, i, 0), x.cols, 1, T(1)), total);
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

// Adds the terms of kGroup rows at the n columns from j on. The sums of kLanes columns keep the order
// of S. Those of fewer columns do not, because the columns are not the first lanes.
template <class T, class S, class N>
FUSEDSTEP_INLINE void add_columns(const RowGroup<T, S>& group, const T (&inverse)[kGroup], int64_t j,
                                  N n, T* s, T* h) {
  ColumnSums<T> sums = fold_group([&](int r) FUSEDSTEP_LAMBDA {
    const Lanes<T> g = group(r, j, n);
    return ColumnSums<T>{g * g, g * g * Lanes<T>(inverse[r])};
  });
  if constexpr (kInPairs<S> && !std::is_same_v<N, All>)
    sums = {from_pairs(sums.s), from_pairs(sums.h)};
  narrow(s + j, widen<T>(s + j, n) + sums.s, n, Place{});
  narrow(h + j, widen<T>(h + j, n) + sums.h, n, Place{});
}

// Read 1 of the rows begin..end of one block: makes `row` and the block's part of the column sums.
// Returns the smallest `row`.
template <class T, class S, class Rule>
double read_block(const Rule& rule, const Matrix<T>& x, int64_t begin, int64_t end, T* s, T* h) {
  std::fill(s, s + x.cols, T(0));
  std::fill(h, h + x.cols, T(0));
  double smallest = INFINITY;
  for (int64_t i = begin; i < end; i += kGroup) {
    const RowGroup<T, S> group = gradient_rows<T, S>(x, i, end);
    if (x.at_once) fetch_lines(x.p + x.offset(0, i, 0), x.offset(0, group.count, 0));
    double total[kGroup];
    row_square_sums<T, kInPairs<S>>(x.cols, group, total);

    T buffer[kGroup], inverse[kGroup] = {};
    T* row = load(x.dtypes[2], x.row_at(i), group.count, buffer);
    for (int r = 0; r < group.count; ++r)
      row[r] = rule.second_moment(row[r], T(total[r] / double(x.cols)));
    round_to_storage(x.dtypes[2], x.row_at(i), group.count, row, x.row_place(i));
    for (int r = 0; r < group.count; ++r) {
      inverse[r] = rule.inverse(row[r]);
      if (row[r] < smallest) smallest = row[r];
    }

    // The rows are in the cache now. Prefetch the next rows; after the last, the next matrix's.
    const S* next = group.first + kGroup * x.cols;
    by_lanes(x.cols, [&](int64_t j, auto n) FUSEDSTEP_LAMBDA {
      if (!x.at_once)
        for (int r = 0; r < kGroup; ++r) __builtin_prefetch(next + r * x.cols + j);
      add_columns(group, inverse, j, n, s, h);
    });
  }
  if constexpr (kInPairs<S>)
    for (int64_t j = 0; j + kLanes <= x.cols; j += kLanes) {
      put_lanes(s + j, from_pairs(get_lanes(s + j)));
      put_lanes(h + j, from_pairs(get_lanes(h + j)));
    }
  return smallest;
}

template <class T, class Rule>
double read_block(const Rule& rule, const Matrix<T>& x, int64_t begin, int64_t end, T* s, T* h) {
  return with_gradient_storage(x, [&](auto* storage) {
    using S = AnyOrder<std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>>;
    return read_block<T, S>(rule, x, begin, end, s, h);
  });
}

template <class T, class Rule>
T mean_of_rows(const Rule& rule, const Matrix<T>& x) {
  return rule.floored_mean(T(stored_sum<T>(x.dtypes[2], x.row, x.rows) / double(x.rows)));
}

// The smallest `row` of a matrix after read 1.
template <class T>
double least_row_of(const Matrix<T>& x) {
  T buffer[kTile], least = T(INFINITY);
  for (int64_t i = 0; i < x.rows; i += kTile) {
    const int64_t n = std::min<int64_t>(kTile, x.rows - i);
    const T* row = load(x.dtypes[MatrixRow::kRow], x.row_at(i), n, buffer);
    for (int64_t k = 0; k < n; ++k) least = row[k] < least ? row[k] : least;
  }
  return double(least);
}

// The sums of one tile of columns over all blocks. `partial` holds s then h of each block.
template <class T>
FUSEDSTEP_INLINE void sum_columns(const Matrix<T>& x, const T* partial, int64_t column, double* s,
                                  double* h) {
  const int64_t width = std::min<int64_t>(kTile, x.cols - column);
  const int64_t blocks = (x.rows + kBlock - 1) / kBlock;
  std::fill(s, s + width, 0.0);
  std::fill(h, h + width, 0.0);
  for (int64_t b = 0; b < blocks; ++b) {
    const T* block_s = partial + 2 * b * x.cols + column;
    const T* block_h = block_s + x.cols;
    FUSEDSTEP_INDEPENDENT
    for (int64_t j = 0; j < width; ++j) s[j] += double(block_s[j]), h[j] += double(block_h[j]);
  }
}

// One tile of columns, from their sums: makes `col` and returns the tile's part of sum(u^2).
// `smallest` gets the smallest `col`.
template <class T, class Rule, class H>
FUSEDSTEP_INLINE double finish_columns(const Rule& rule, const Matrix<T>& x, const double* s,
                                       const H* h, T mean, int64_t column, double& smallest) {
  const int64_t width = std::min<int64_t>(kTile, x.cols - column);
  T buffer[kTile], u2[kTile];
  T* col = load(x.dtypes[3], x.col_at(column), width, buffer);
  FUSEDSTEP_INDEPENDENT
  for (int64_t j = 0; j < width; ++j) col[j] = rule.second_moment(col[j], T(s[j] / double(x.rows)));
  round_to_storage(x.dtypes[3], x.col_at(column), width, col, x.col_place(column));
  FUSEDSTEP_INDEPENDENT
  for (int64_t j = 0; j < width; ++j) u2[j] = rule.col_sum_u2(T(h[j]), col[j], mean);
  T least = T(INFINITY);
  for (int64_t j = 0; j < width; ++j) least = col[j] < least ? col[j] : least;
  smallest = least;
  return double(tile_sum<T>(u2, width));
}

// The same, from the sums of all blocks.
template <class T, class Rule>
double finish_columns(const Rule& rule, const Matrix<T>& x, const T* partial, T mean, int64_t column,
                      double& smallest) {
  double s[kTile], h[kTile];
  sum_columns(x, partial, column, s, h);
  return finish_columns(rule, x, s, h, mean, column, smallest);
}

}  // namespace
}  // namespace fusedstep
