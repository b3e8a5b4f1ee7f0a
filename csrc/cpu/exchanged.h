// A factored step in three stages: read 1, finish, update. Between them, the host adds up sums over
// processes. `sums_layout` in plan/launcher.py gives the layout of the sums in host memory.
// Additions have the same order as in one call, so an exchange that changes nothing changes no bit.
#pragma once

#include "matrix_tensor.h"
#include "vector_tensor.h"

namespace fusedstep {
namespace {

template <class T, bool Momentum>
struct ExchangedMatrix : MatrixTensor<T, Momentum> {
  using Base = MatrixTensor<T, Momentum>;
  using Base::cut, Base::launch, Base::rule, Base::sums;
  double* first;   // the tensor's first sum
  double& sum_u2;  // over the rows here, later over the whole tensor
  T* small_h;      // h of small matrices before the exchange

  ExchangedMatrix(const LaunchArgs& launch, int64_t t, char* thread_scratch)
      : Base(launch, t, thread_scratch),
        first(launch.exchange.sums + launch.exchange.sums_of[t]),
        sum_u2(launch.exchange.sum_u2[t]),
        small_h(reinterpret_cast<T*>(launch.scratch + launch.scratch_of[t] + sums.bytes)) {}

  // A matrix's s and h of each column, then the sum of its row moments. sum p^2 comes last.
  double* sums_of(int64_t b) const { return first + b * (2 * cut.cols + 1); }
  double& sum_p2() const { return *sums_of(cut.batch); }
  T mean(int64_t b) const { return rule.floored_mean(T(sums_of(b)[2 * cut.cols] / double(cut.rows))); }
  int64_t column_entries() const { return (cut.tiles + kColumnTiles - 1) / kColumnTiles; }

  void statistics(int64_t piece) const {
    if (cut.blocked) return read_block_of(piece);
    double& p = sums.p[piece] = 0.0;
    for (int64_t b = piece * cut.per_piece; b < this->end_of(piece); ++b) {
      const Matrix<T> x = this->matrix(b);
      this->read_blocks(x);
      if (this->wants_p2()) add_parameter_squares(x, 0, cut.rows, p);
      for (int64_t column = 0; column < cut.cols; column += kTile) pack(x, this->partial, b, column);
      const double* h = sums_of(b) + cut.cols;
      for (int64_t j = 0; j < cut.cols; ++j) small_h[b * cut.cols + j] = T(h[j]);
      pack_rows(x, b);
    }
  }
  void read_block_of(int64_t piece) const {
    Base::statistics(piece);
    if (!this->sums_late()) return;
    const auto at = this->block_at(piece);
    add_parameter_squares(this->matrix(at.matrix), at.begin, at.end, sums.p[piece]);
  }

  // Packs the sums of the blocks of rows, for some tiles of columns.
  void pack_columns(int64_t index) const {
    const int64_t b = index / column_entries(), tile = index % column_entries() * kColumnTiles;
    const Matrix<T> x = this->matrix(b);
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
    sums_of(b)[2 * cut.cols] = stored_sum<T>(x.dtypes[MatrixRow::kRow], x.row, x.rows);
  }

  // Some tiles of columns of a matrix in blocks.
  void columns(int64_t index) const {
    const int64_t b = index / column_entries(), tile = index % column_entries() * kColumnTiles;
    if (tile == 0) sums.mean[b] = mean(b);
    for (int64_t k = tile; k < std::min(tile + kColumnTiles, cut.tiles); ++k) {
      const int64_t at = b * cut.tiles + k;
      sums.tile_u2[at] = finish_tile(this->matrix(b), b, k * kTile, sums.least_col[at]);
    }
  }
  // Each process computes sum(u^2) of its own rows, so h is not the exchanged one.
  double finish_tile(const Matrix<T>& x, int64_t b, int64_t column, double& least) const {
    const double* s = sums_of(b) + column;
    if (!cut.blocked) {
      const T* h = small_h + b * cut.cols + column;
      return finish_columns(rule, x, s, h, mean(b), column, least);
    }
    double own_s[kTile], own_h[kTile];
    sum_columns(x, this->block_partial(b * cut.blocks), column, own_s, own_h);
    return finish_columns(rule, x, s, own_h, mean(b), column, least);
  }

  // All work on small matrices before the step size.
  void finish_piece(int64_t piece) const {
    double& u = sums.u[piece] = 0.0;
    for (int64_t b = piece * cut.per_piece; b < this->end_of(piece); ++b) {
      const Matrix<T> x = this->matrix(b);
      double u2 = 0.0, least_col = INFINITY, least;
      for (int64_t column = 0; column < cut.cols; column += kTile) {
        u2 += finish_tile(x, b, column, least);
        least_col = std::min(least_col, least);
      }
      const bool capped = rule.is_capped(T(least_row_of(x)), T(least_col), mean(b));
      u += capped ? this->exact_sum_u2(x, mean(b)) : u2;
    }
  }
  void finish_columns_of(int64_t index) const { cut.blocked ? columns(index) : finish_piece(index); }
  void total_u2() const { sum_u2 = this->tensor_sum_u2(); }

  void set_step() const { this->make_step(sum_p2(), sum_u2, sums.step); }

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
  double& sum_u2;

  ExchangedVector(const LaunchArgs& launch, int64_t t, char* thread_scratch)
      : Base(launch, t, thread_scratch),
        first(launch.exchange.sums + launch.exchange.sums_of[t]),
        sum_u2(launch.exchange.sum_u2[t]) {}

  double& sum_p2() const { return *first; }

  void statistics(int64_t piece) const {
    Base::statistics(piece);
    const int64_t begin = piece * kCpuRun, end = std::min<int64_t>(begin + kCpuRun, cut.batch);
    if (this->sums_late()) sums.p[piece] = this->parameter_squares(begin, end);
  }
  void pack_columns(int64_t) const {}
  void pack_tensor() const { sum_p2() = sum_in_order(sums.p, cut.pieces); }
  void finish_columns_of(int64_t) const {}
  void total_u2() const { sum_u2 = sum_in_order(sums.u, cut.pieces); }
  void set_step() const { this->make_step(sum_p2(), sum_u2, sums.step); }
};

template <class Tensor>
void walk_exchanged(const LaunchArgs& launch, const Entry& entry, char* thread_scratch) {
  const Tensor tensor(launch, entry.tensor, thread_scratch);
  switch (entry.kind) {
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
