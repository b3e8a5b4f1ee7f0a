// A factored step on parts of tensors, in stages: sums along rows if columns are split, read 1,
// finish, update. Between them, the host adds up sums over processes. `sums_layout` in
// plan/launcher.py gives the layout of the sums in host memory. Additions have the same order as in
// one call, so an exchange that changes nothing changes no bit.
#pragma once

#include "matrix_tensor.h"
#include "vector_tensor.h"

namespace fusedstep {
namespace {

template <class T, bool Momentum>
struct ExchangedMatrix : MatrixTensor<T, Momentum> {
  using Base = MatrixTensor<T, Momentum>;
  using Base::cut, Base::launch, Base::rule, Base::sums;
  double* first;  // the tensor's first sum
  OfTensor& whole;
  T* small_h;  // h of small matrices before the exchange

  ExchangedMatrix(const LaunchArgs& launch, int64_t t, char* thread_scratch)
      : Base(launch, t, thread_scratch),
        first(launch.exchange.sums + launch.exchange.sums_of[t]),
        whole(launch.exchange.of_tensors[t]),
        small_h(reinterpret_cast<T*>(launch.scratch + launch.scratch_of[t] + sums.bytes)) {
    this->elements = int64_t(whole.elements);
  }

  // A matrix's s and h of each column, then the sum of its row moments. After all matrices: sum p^2,
  // and if columns are split, the sums along the rows.
  double* sums_of(int64_t b) const { return first + b * (2 * cut.cols + 1); }
  double& sum_p2() const { return *sums_of(cut.batch); }
  double* row_sums(int64_t b) const { return sums_of(cut.batch) + 1 + b * cut.rows; }
  bool split_columns() const { return launch.exchange.split_columns != 0; }
  T mean(int64_t b) const { return rule.floored_mean(T(sums_of(b)[2 * cut.cols] / whole.rows)); }

  Matrix<T> matrix(int64_t b) const {
    Matrix<T> x = Base::matrix(b);
    x.whole_cols = whole.cols;
    if (split_columns()) x.row_sums = row_sums(b);
    return x;
  }
  int64_t column_entries() const { return (cut.tiles + kColumnTiles - 1) / kColumnTiles; }

  // Calls `function(x, begin, end)` for the rows of a piece, matrix by matrix.
  template <class Function>
  void for_rows(int64_t piece, Function&& function) const {
    if (cut.blocked) {
      const auto at = this->block_at(piece);
      return function(matrix(at.matrix), at.begin, at.end);
    }
    for (int64_t b = piece * cut.per_piece; b < this->end_of(piece); ++b)
      function(matrix(b), int64_t(0), cut.rows);
  }

  // Only if columns are split.
  void sum_rows_of(int64_t piece) const {
    for_rows(piece, [&](const Matrix<T>& x, int64_t begin, int64_t end) {
      sum_rows(x, begin, end, row_sums(x.number));
    });
    sum_squares(piece);
  }
  void sum_squares(int64_t piece) const {
    sums.p[piece] = 0.0;
    if (!this->wants_p2()) return;
    for_rows(piece, [&](const Matrix<T>& x, int64_t begin, int64_t end) {
      add_parameter_squares(x, begin, end, sums.p[piece]);
    });
  }

  void statistics(int64_t piece) const {
    if (!split_columns()) sum_squares(piece);
    if (cut.blocked) {
      const auto at = this->block_at(piece);
      T* s = this->block_partial(piece);
      sums.least_row[piece] = read_block(rule, matrix(at.matrix), at.begin, at.end, s, s + cut.cols);
      return;
    }
    for (int64_t b = piece * cut.per_piece; b < this->end_of(piece); ++b) {
      const Matrix<T> x = matrix(b);
      this->read_blocks(x);
      for (int64_t column = 0; column < cut.cols; column += kTile) pack(x, this->partial, b, column);
      const double* h = sums_of(b) + cut.cols;
      for (int64_t j = 0; j < cut.cols; ++j) small_h[b * cut.cols + j] = T(h[j]);
      pack_rows(x, b);
    }
  }

  // Packs the sums of the blocks of rows, for some tiles of columns.
  void pack_columns(int64_t index) const {
    const int64_t b = index / column_entries(), tile = index % column_entries() * kColumnTiles;
    const Matrix<T> x = matrix(b);
    const T* partial = this->block_partial(b * cut.blocks);
    for (int64_t k = tile; k < std::min(tile + kColumnTiles, cut.tiles); ++k)
      pack(x, partial, b, k * kTile);
    if (tile == 0) pack_rows(x, b);
  }
  void pack_tensor() const { sum_p2() = sum_in_order(sums.p, cut.pieces); }

  void pack(const Matrix<T>& x, const T* partial, int64_t b, int64_t column) const {
    double* s = sums_of(b) + column;
    sum_columns(x, partial, column, s, s + cut.cols);
  }
  void pack_rows(const Matrix<T>& x, int64_t b) const {
    sums_of(b)[2 * cut.cols] = stored_sum<T>(x.row, x.rows);
  }

  // Some tiles of columns of a matrix in blocks.
  void columns(int64_t index) const {
    const int64_t b = index / column_entries(), tile = index % column_entries() * kColumnTiles;
    if (tile == 0) sums.mean[b] = mean(b);
    for (int64_t k = tile; k < std::min(tile + kColumnTiles, cut.tiles); ++k) {
      const int64_t at = b * cut.tiles + k;
      sums.tile_u2[at] = finish_tile(matrix(b), b, k * kTile, sums.least_col[at]);
    }
  }
  // If a cap may change u, each process computes sum(u^2) of its own rows, so from its own h.
  double finish_tile(const Matrix<T>& x, int64_t b, int64_t column, double& least) const {
    const double* s = sums_of(b) + column;
    auto finish = [&](const auto* h) {
      return finish_columns(rule, x, whole.rows, s, h, mean(b), column, least);
    };
    if (whole.capped == 0.0) return finish(s + cut.cols);
    if (!cut.blocked) return finish(small_h + b * cut.cols + column);
    double own_s[kTile], own_h[kTile];
    sum_columns(x, this->block_partial(b * cut.blocks), column, own_s, own_h);
    return finish(own_h);
  }

  // All work on small matrices before the step size.
  void finish_piece(int64_t piece) const {
    double& u = sums.u[piece] = 0.0;
    for (int64_t b = piece * cut.per_piece; b < this->end_of(piece); ++b) {
      const Matrix<T> x = matrix(b);
      double u2 = 0.0, least_col = INFINITY, least;
      for (int64_t column = 0; column < cut.cols; column += kTile) {
        u2 += finish_tile(x, b, column, least);
        least_col = std::min(least_col, least);
      }
      // Without rows here, sum(u^2) of them is 0, also where moments of columns are.
      const bool capped = cut.rows == 0 ? whole.capped != 0.0
                                        : rule.is_capped(T(least_row_of(x)), T(least_col), mean(b));
      u += capped ? this->exact_sum_u2(x, mean(b)) : u2;
    }
  }
  void finish_columns_of(int64_t index) const { cut.blocked ? columns(index) : finish_piece(index); }
  // Without rows here, sum(u^2) of them is 0, even where a column is all zeros, so that its part would
  // be 0 / 0.
  void total_u2() const {
    const bool is_nothing = whole.capped != 0.0 && cut.rows == 0;
    whole.sum_u2 = is_nothing ? 0.0 : this->tensor_sum_u2();
  }

  void set_step() const { this->make_step(sum_p2(), whole.sum_u2, sums.step); }

  void update(int64_t piece) const {
    if (cut.blocked) return Base::update(piece);
    this->update_matrices(piece, sums.step, sums.p[piece], nullptr,
                          [&](const Matrix<T>&, int64_t b) { return mean(b); });
  }
};

template <class T, bool Momentum>
struct ExchangedVector : VectorTensor<T, Momentum> {
  using Base = VectorTensor<T, Momentum>;
  using Base::cut, Base::sums;
  double* first;
  OfTensor& whole;

  ExchangedVector(const LaunchArgs& launch, int64_t t, char* thread_scratch)
      : Base(launch, t, thread_scratch),
        first(launch.exchange.sums + launch.exchange.sums_of[t]),
        whole(launch.exchange.of_tensors[t]) {
    this->elements = int64_t(whole.elements);
  }

  void sum_rows_of(int64_t) const {}
  double& sum_p2() const { return *first; }

  void statistics(int64_t piece) const {
    Base::statistics(piece);
    const int64_t begin = piece * kCpuRun, end = std::min<int64_t>(begin + kCpuRun, cut.batch);
    if (this->sums_late()) sums.p[piece] = this->parameter_squares(begin, end);
  }
  void pack_columns(int64_t) const {}
  void pack_tensor() const { sum_p2() = sum_in_order(sums.p, cut.pieces); }
  void finish_columns_of(int64_t) const {}
  void total_u2() const { whole.sum_u2 = sum_in_order(sums.u, cut.pieces); }
  void set_step() const { this->make_step(sum_p2(), whole.sum_u2, sums.step); }
};

template <class Tensor>
void walk_exchanged(const LaunchArgs& launch, const Entry& entry, char* thread_scratch) {
  const Tensor tensor(launch, entry.tensor, thread_scratch);
  switch (entry.kind) {
    case kSumRows:
      return tensor.sum_rows_of(entry.index);
    case kStatistics:
      return tensor.statistics(entry.index);
    case kPackColumns:
      return tensor.pack_columns(entry.index);
    case kPackTensor:
      return tensor.pack_tensor();
    case kColumns:
      return tensor.finish_columns_of(entry.index);
    case kSumU2:
      return tensor.block_u2(entry.index);
    case kTotalU2:
      return tensor.total_u2();
    case kStepSize:
      return tensor.set_step();
    case kUpdate:
      return tensor.update(entry.index);
    case kStoreRms:
      return tensor.store_rms(tensor.sum_p2());
  }
}

}  // namespace
}  // namespace fusedstep
