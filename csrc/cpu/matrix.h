// Sums and moments of one matrix in a factored step: read 1 by blocks of rows, then the columns.
#pragma once

#include <algorithm>
#include <cmath>

#include "../plan.h"
#include "sums.h"

namespace fusedstep {
namespace {

// One matrix of a tensor: how and where its slots are stored, and its sizes.
template <class T>
struct Matrix {
  Stored p, g, row, col, m;
  int64_t rows, cols;
  T grad_scale;
  bool at_once;    // the update directly follows read 1
  int64_t number;  // of the matrix in its tensor
  T* converted;    // room for a group of the gradient's rows
  // Only if columns are split: the sums along whole rows, and how many columns those have.
  const double* row_sums;
  double whole_cols;
  // Only if something is rounded by noise. `first` is the matrix's first element in the tensor here.
  const NoiseRow* noise;
  NoiseKeys keys;
  int64_t first;

  int64_t element(int64_t i, int64_t j = 0) const { return i * cols + j; }
  Place row_place(int64_t i) const {
    if (noise == nullptr) return {};
    return {keys, whole_place(*noise, first + element(i))};
  }
};

// Up to kGroup rows in storage type S. `Scaled` is false if the scale is 1.
template <class T, class S, bool Scaled = true>
struct RowGroup {
  Cursor<S> first;
  int64_t stride;  // from row to row
  int count;
  T scale;

  RowGroup(Cursor<S> first, int64_t stride, int64_t rows, T scale)
      : first(first), stride(stride), count(int(std::min<int64_t>(kGroup, rows))), scale(scale) {}

  static constexpr int kCount = kLanesOf<S>;
  template <class N>
  FUSEDSTEP_INLINE Lanes<T, kCount> operator()(int r, int64_t j, N n) const {
    const Lanes<T, kCount> x = widen<T, kCount>(first + (r * stride + j), n);
    if constexpr (Scaled) return x * Lanes<T, kCount>(scale);
    return x;
  }
  // Part k of the kCount numbers from column j on.
  FUSEDSTEP_INLINE typename Lanes<T>::Part part(int r, int64_t j, int k) const {
    const auto x = Storage<S>::widen_one(first + (r * stride + j), k);
    if constexpr (Scaled) return x * scale;
    return x;
  }
};

// Rows of the gradient, from row i on. If S is T, it may be stored in any dtype.
template <class T, class S, bool Scaled = true>
FUSEDSTEP_INLINE RowGroup<T, S, Scaled> gradient_rows(const Matrix<T>& x, int64_t i, int64_t end) {
  const Stored first = x.g.from(x.element(i));
  RowGroup<T, S, Scaled> group(cursor<S>(first), x.cols, end - i, x.grad_scale);
  if constexpr (std::is_same_v<S, T>) group.first = load(first, group.count * x.cols, x.converted);
  return group;
}

// Calls `function` with a null pointer of the gradient's storage type: T if it was converted.
template <class T, class Function>
FUSEDSTEP_INLINE auto with_gradient_storage(const Matrix<T>& x, Function&& function) {
  if (x.converted == nullptr) return with_usual_storage<T>(x.g.code, function);
  return function(static_cast<const T*>(nullptr));
}

// Prefetches memory. The hardware follows neither eight rows nor a jump to the next small tensor.
inline void fetch_lines(const Stored& x, int64_t first, int64_t count) {
  const char *from = x.from(first).at, *end = x.from(first + count).at;
  for (; from < end; from += 64) __builtin_prefetch(from);
}

// Adds the parameter's squares, row by row, to the sum of their block or piece.
template <class T>
void add_parameter_squares(const Matrix<T>& x, int64_t begin, int64_t end, double& sum) {
  with_parameter_storage<T>(x.p.code, [&](auto* storage) {
    using S = AnyOrder<std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>>;
    for (int64_t i = begin; i < end; ++i) {
      double total[1];
      const RowGroup<T, S, false> row(cursor<S>(x.p.from(x.element(i))), x.cols, 1, T(1));
      row_square_sums<T, kInPairs<S>>(x.cols, 1, row, total);
      sum += total[0];
    }
  });
}

// The sums of g^2 and of g^2 / row.
template <class V>
struct ColumnSums {
  V s, h;
  FUSEDSTEP_INLINE ColumnSums operator+(const ColumnSums& other) const {
    return {s + other.s, h + other.h};
  }
};

// Adds the terms of kGroup rows at the kCount columns from j on. The sums keep the order of S. Goes
// part by part, because a fold of all lanes needs more registers than AVX2 has.
template <class T, class Group>
FUSEDSTEP_INLINE void add_columns(const Group& group, const T (&inverse)[kGroup], int64_t j, T* s,
                                  T* h) {
  using Part = typename Lanes<T>::Part;
#pragma GCC unroll 16
  for (int k = 0; k < Lanes<T, Group::kCount>::kParts; ++k) {
    const auto sums = fold_group([&](int r) FUSEDSTEP_LAMBDA {
      const Part g = group.part(r, j, k), g2 = g * g;
      return ColumnSums<Part>{g2, g2 * inverse[r]};
    });
    T *const part_s = s + j + k * Lanes<T>::kWidth, *const part_h = h + j + k * Lanes<T>::kWidth;
    put(part_s, get<Part>(part_s) + sums.s);
    put(part_h, get<Part>(part_h) + sums.h);
  }
}

// The same for fewer rows, or for the last n < kCount columns, whose sums lie in the order of places.
// They are copied first, so that there is only this one more loop to compile.
template <class T, class S, bool Scaled>
__attribute__((noinline)) void add_edge(const RowGroup<T, S, Scaled>& group, const T (&inverse)[kGroup],
                                        int64_t j, int64_t n, T* s, T* h) {
  constexpr int kCount = kLanesOf<S>;
  S block[kGroup][kCount] = {};
  T s_sums[kCount] = {}, h_sums[kCount] = {};
  for (int r = 0; r < group.count; ++r) {
    const S* row = group.first + (r * group.stride + j);
    n < kCount ? copy_first<kCount>(block[r], row, n)
               : void(std::memcpy(block[r], row, sizeof(block[r])));
  }
  const RowGroup<T, S, Scaled> copied(block[0], kCount, kGroup, group.scale);
  add_columns(copied, inverse, 0, s_sums, h_sums);
  using Numbers = Lanes<T, kCount>;
  auto add = [&](T* to, const Numbers& sums, auto count)
                 FUSEDSTEP_LAMBDA { narrow(to, widen<T, kCount>(to, count) + sums, count, Place{}); };
  Numbers own_s = get_lanes<kCount>(s_sums), own_h = get_lanes<kCount>(h_sums);
  if (n == kCount) return add(s + j, own_s, kAll), add(h + j, own_h, kAll);
  if constexpr (kInPairs<S>) own_s = from_pairs(own_s), own_h = from_pairs(own_h);
  add(s + j, own_s, n), add(h + j, own_h, n);
}

// Read 1 of the rows begin..end of one block: makes `row` and the block's part of the column sums.
// Returns the smallest `row`.
template <class T, class S, bool Scaled, class Rule>
double read_block(const Rule& rule, const Matrix<T>& x, int64_t begin, int64_t end, T* s, T* h) {
  std::fill(s, s + x.cols, T(0));
  std::fill(h, h + x.cols, T(0));
  double smallest = INFINITY;
  for (int64_t i = begin; i < end; i += kGroup) {
    const RowGroup<T, S, Scaled> group = gradient_rows<T, S, Scaled>(x, i, end);
    if (x.at_once) fetch_lines(x.p, x.element(i), x.element(group.count));
    double total[kGroup];
    if (x.row_sums == nullptr) row_square_sums<T, kInPairs<S>>(x.cols, group.count, group, total);
    const double* sums = x.row_sums == nullptr ? total : x.row_sums + i;
    const double cols = x.row_sums == nullptr ? double(x.cols) : x.whole_cols;

    T buffer[kGroup], inverse[kGroup] = {};
    T* row = load(x.row.from(i), group.count, buffer);
    for (int r = 0; r < group.count; ++r) row[r] = rule.second_moment(row[r], T(sums[r] / cols));
    round_to_storage(x.row.from(i), group.count, row);
    for (int r = 0; r < group.count; ++r) {
      inverse[r] = rule.inverse(row[r]);
      if (row[r] < smallest) smallest = row[r];
    }

    // The rows are in the cache now. Prefetch the next rows; after the last, the next matrix's. If
    // kCount columns are half a line, half of the rows are next. Lines of the same columns may have
    // the same places in the first-level cache, so prefetch those of columns that were added before:
    // on an AMD EPYC this takes a third off read 1 of rows of 4,096 (2026-11-26).
    constexpr int kCount = kLanesOf<S>;
    constexpr int64_t kBehind = 1024 / sizeof(S);
    constexpr int kFetched = std::min<int>(kGroup, kGroup * kCount * sizeof(S) / 64);
    const S* next = group.first + kGroup * x.cols;
    const bool ahead = !x.at_once;
    const int64_t whole = group.count == kGroup ? x.cols / kCount * kCount : 0;
    for (int64_t j = 0; j < whole; j += kCount) {
      if (ahead) {
        const S* from = next + j / kCount % (kGroup / kFetched) * kFetched * x.cols + j - kBehind;
        for (int r = 0; r < kFetched; ++r) __builtin_prefetch(from + r * x.cols);
      }
      add_columns(group, inverse, j, s, h);
    }
    for (int64_t j = whole; j < x.cols; j += kCount)
      add_edge(group, inverse, j, std::min<int64_t>(kCount, x.cols - j), s, h);
  }
  if constexpr (kInPairs<S>)
    for (int64_t j = 0; j + kPairedLanes <= x.cols; j += kPairedLanes) {
      put_lanes(s + j, from_pairs(get_lanes<kPairedLanes>(s + j)));
      put_lanes(h + j, from_pairs(get_lanes<kPairedLanes>(h + j)));
    }
  return smallest;
}

template <class T, class Rule>
double read_block(const Rule& rule, const Matrix<T>& x, int64_t begin, int64_t end, T* s, T* h) {
  return with_gradient_storage(x, [&](auto* storage) {
    using S = AnyOrder<std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>>;
    // More kinds of loops would take long to compile.
    if constexpr (!std::is_same_v<S, Float16>)
      if (x.grad_scale == T(1)) return read_block<T, S, false>(rule, x, begin, end, s, h);
    return read_block<T, S, true>(rule, x, begin, end, s, h);
  });
}

// Writes the sums of g^2 along the rows begin..end to `sums`.
template <class T>
void sum_rows(const Matrix<T>& x, int64_t begin, int64_t end, double* sums) {
  with_gradient_storage(x, [&](auto* storage) {
    using S = AnyOrder<std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>>;
    for (int64_t i = begin; i < end; i += kGroup) {
      const RowGroup<T, S, true> group = gradient_rows<T, S, true>(x, i, end);
      double total[kGroup];
      row_square_sums<T, kInPairs<S>>(x.cols, group.count, group, total);
      std::copy(total, total + group.count, sums + i);
    }
  });
}

template <class T, class Rule>
T mean_of_rows(const Rule& rule, const Matrix<T>& x) {
  return rule.floored_mean(T(stored_sum<T>(x.row, x.rows) / double(x.rows)));
}

// The smallest `row` of a matrix after read 1.
template <class T>
double least_row_of(const Matrix<T>& x) {
  T buffer[kTile], least = T(INFINITY);
  for (int64_t i = 0; i < x.rows; i += kTile) {
    const int64_t n = std::min<int64_t>(kTile, x.rows - i);
    const T* row = load(x.row.from(i), n, buffer);
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

// One tile of columns of a matrix with so many rows, from their sums: makes `col` and returns the
// tile's part of sum(u^2). `smallest` gets the smallest `col`.
template <class T, class Rule, class H>
FUSEDSTEP_INLINE double finish_columns(const Rule& rule, const Matrix<T>& x, double rows,
                                       const double* s, const H* h, T mean, int64_t column,
                                       double& smallest) {
  const int64_t width = std::min<int64_t>(kTile, x.cols - column);
  T buffer[kTile], u2[kTile];
  T* col = load(x.col.from(column), width, buffer);
  FUSEDSTEP_INDEPENDENT
  for (int64_t j = 0; j < width; ++j) col[j] = rule.second_moment(col[j], T(s[j] / rows));
  round_to_storage(x.col.from(column), width, col);
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
  return finish_columns(rule, x, double(x.rows), s, h, mean, column, smallest);
}

}  // namespace
}  // namespace fusedstep
