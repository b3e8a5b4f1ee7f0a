// The walker of factored rules on matrices: small ones in runs, large ones by
// blocks of rows.
#pragma once

#include "factored.h"
#include "matrix_elements.h"

namespace fusedstep {
namespace {

template <class T, bool Momentum>
struct MatrixTensor : FactoredTensor<T, Momentum> {
  using Base = FactoredTensor<T, Momentum>;
  using Base::launch, Base::rule, Base::size, Base::slot;
  MatrixCut cut;
  Sums sums;
  T *partial,
      *factor;  // this thread's sums of a small matrix, and column factors

  MatrixTensor(const LaunchArgs& launch, int64_t t, char* thread_scratch)
      : Base(launch, t),
        cut(size(MatrixRow::kBatch), size(MatrixRow::kRows), size(MatrixRow::kCols)),
        sums(launch.scratch + launch.scratch_of[t], cut, sizeof(T)),
        factor(reinterpret_cast<T*>(thread_scratch)) {
    this->elements = cut.batch * cut.rows * cut.cols;
    partial = factor + (converts_gradient(launch) ? 1 + kGroup : 1) * cut.cols;
  }

  Matrix<T> matrix(int64_t b) const {
    const int64_t area = b * cut.rows * cut.cols;
    Matrix<T> x{};
    x.p = slot(MatrixRow::kP).from(area);
    x.g = slot(MatrixRow::kG).from(area);
    x.row = slot(MatrixRow::kRow).from(b * cut.rows);
    x.col = slot(MatrixRow::kCol).from(b * cut.cols);
    if (Momentum) x.m = slot(MatrixRow::kMomentum).from(area);
    x.rows = cut.rows, x.cols = cut.cols, x.number = b;
    x.grad_scale = this->grad_scale, x.at_once = cut.at_once();
    if (converts_gradient(launch)) x.converted = factor + cut.cols;
    if (launch.noise != nullptr) x.noise = &noise_row_of(launch, this->number), x.keys = this->keys;
    x.first = area;
    return x;
  }

  // One small matrix: read 1 and its columns. Returns sum(u^2).
  double read_matrix(const Matrix<T>& x, double& p) const {
    double least_col = INFINITY, least;
    const double least_row = read_blocks(x);
    if (this->scaled()) add_parameter_squares(x, 0, cut.rows, p);
    const T mean = mean_of_rows<T>(rule, x);
    double u2 = 0.0;
    for (int64_t column = 0; column < cut.cols; column += kTile) {
      u2 += finish_columns(rule, x, partial, mean, column, least);
      least_col = std::min(least_col, least);
    }
    return rule.is_capped(T(least_row), T(least_col), mean) ? exact_sum_u2(x, mean) : u2;
  }

  // Read 1 of all blocks of a small matrix. Returns the smallest row moment.
  double read_blocks(const Matrix<T>& x) const {
    double smallest = INFINITY;
    for (int64_t b = 0; b < cut.blocks; ++b) {
      T* s = partial + 2 * b * cut.cols;
      const int64_t end = std::min<int64_t>((b + 1) * kBlock, cut.rows);
      smallest = std::min(smallest, read_block(rule, x, b * kBlock, end, s, s + cut.cols));
    }
    return smallest;
  }

  double exact_sum_u2(const Matrix<T>& x, T mean) const {
    double u2 = 0.0;
    for (int64_t b = 0; b < cut.blocks; ++b) {
      const int64_t end = std::min<int64_t>((b + 1) * kBlock, cut.rows);
      u2 += block_sum_u2(rule, x, b * kBlock, end, mean, factor);
    }
    return u2;
  }

  void read_piece(int64_t piece, double& p, double& u) const {
    p = u = 0.0;
    for (int64_t b = piece * cut.per_piece; b < end_of(piece); ++b) u += read_matrix(matrix(b), p);
  }

  void update_piece(int64_t piece, const double* step, double& p,
                    const Stored* next_gradient = nullptr) const {
    update_matrices(piece, step, p, next_gradient,
                    [&](const Matrix<T>& x, int64_t) { return mean_of_rows<T>(rule, x); });
  }

  // `mean_of` gives the mean of a matrix's rows.
  template <class MeanOf>
  void update_matrices(int64_t piece, const double* step, double& p, const Stored* next_gradient,
                       MeanOf mean_of) const {
    if (this->sums_late()) p = 0.0;
    for (int64_t b = piece * cut.per_piece; b < end_of(piece); ++b) {
      const Matrix<T> x = matrix(b);
      update_rows<T, Momentum>(rule, x, 0, cut.rows, mean_of(x, b), factor, T(step[0]), T(step[1]),
                               this->sums_late() ? &p : nullptr, next_gradient);
    }
  }

  int64_t end_of(int64_t piece) const { return std::min(cut.batch, (piece + 1) * cut.per_piece); }

  // Large matrices: `block` counts through the whole tensor.
  struct Block {
    int64_t matrix, begin, end;
  };
  Block block_at(int64_t block) const {
    const int64_t begin = block % cut.blocks * kBlock;
    return {block / cut.blocks, begin, std::min<int64_t>(begin + kBlock, cut.rows)};
  }
  T* block_partial(int64_t block) const {
    return reinterpret_cast<T*>(sums.partial) + 2 * block * cut.cols;
  }

  void statistics(int64_t piece) const {
    if (!cut.blocked) return read_piece(piece, sums.p[piece], sums.u[piece]);
    const Block at = block_at(piece);
    const Matrix<T> x = matrix(at.matrix);
    sums.p[piece] = 0.0;
    if (this->scaled()) add_parameter_squares(x, at.begin, at.end, sums.p[piece]);
    T* s = block_partial(piece);
    sums.least_row[piece] = read_block(rule, x, at.begin, at.end, s, s + cut.cols);
  }

  void columns(int64_t index) const {
    const int64_t entries = (cut.tiles + kColumnTiles - 1) / kColumnTiles;
    const int64_t b = index / entries, first = index % entries * kColumnTiles;
    const Matrix<T> x = matrix(b);
    const T mean = mean_of_rows<T>(rule, x);
    if (first == 0) sums.mean[b] = mean;
    for (int64_t tile = first; tile < std::min(first + kColumnTiles, cut.tiles); ++tile) {
      const int64_t k = b * cut.tiles + tile;
      sums.tile_u2[k] =
          finish_columns(rule, x, block_partial(b * cut.blocks), mean, tile * kTile, sums.least_col[k]);
    }
  }

  bool capped(int64_t b) const {
    const double* row = sums.least_row + b * cut.blocks;
    const double* col = sums.least_col + b * cut.tiles;
    return rule.is_capped(T(*std::min_element(row, row + cut.blocks)),
                          T(*std::min_element(col, col + cut.tiles)), T(sums.mean[b]));
  }

  void block_u2(int64_t block) const {
    const Block at = block_at(block);
    if (!(tensor_rule_cap() < INFINITY) || !capped(at.matrix)) return;
    const Matrix<T> x = matrix(at.matrix);
    sums.u[block] = block_sum_u2(rule, x, at.begin, at.end, T(sums.mean[at.matrix]), factor);
  }
  double tensor_rule_cap() const { return this->tensor_rule.cap; }

  double tensor_sum_u2() const {
    if (!cut.blocked) return sum_in_order(sums.u, cut.pieces);
    double u = 0.0;
    for (int64_t b = 0; b < cut.batch; ++b)
      u += capped(b) ? sum_in_order(sums.u + b * cut.blocks, cut.blocks)
                     : sum_in_order(sums.tile_u2 + b * cut.tiles, cut.tiles);
    return u;
  }

  void set_step() const {
    this->make_step(sum_in_order(sums.p, cut.pieces), tensor_sum_u2(), sums.step);
  }

  void update(int64_t piece) const {
    if (!cut.blocked) return update_piece(piece, sums.step, sums.p[piece]);
    const Block at = block_at(piece);
    const Matrix<T> x = matrix(at.matrix);
    update_rows<T, Momentum>(rule, x, at.begin, at.end, T(sums.mean[at.matrix]), factor,
                             T(sums.step[0]), T(sums.step[1]),
                             this->sums_late() ? &sums.p[piece] : nullptr, nullptr);
  }
};

}  // namespace
}  // namespace fusedstep
