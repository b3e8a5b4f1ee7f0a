// Walks the Adafactor family over the tensors of a launch: what each kind of work entry does.
#pragma once

#include "elementwise.h"
#include "matrix_elements.h"
#include "work.h"

namespace fusedstep {
namespace {

// What both kinds of tensor share: the rule, and how a tensor's sums become its step size.
template <class T, bool Momentum>
struct FactoredTensor {
  const Launch& launch;
  const int64_t* tensor;  // the row of the table
  Adafactor<T> rule;
  Adafactor<double> tensor_rule;
  T grad_scale;
  double* rms;  // where rms(p) is wanted, as a T; may be null
  int64_t elements;

  FactoredTensor(const Launch& launch, int64_t t, int slots)
      : launch(launch),
        tensor(launch.table + t * launch.fields),
        rule(rule_of<Adafactor<T>, T>(launch, t)),
        tensor_rule(rule_of<Adafactor<double>, double>(launch, t)),
        grad_scale(gradient_scale<T>(launch, t)),
        rms(reinterpret_cast<double*>(tensor[slots])) {}

  bool scaled() const { return tensor_rule.scaled > 0.0; }
  bool wants_p2() const { return scaled() || rms != nullptr; }
  // The parameter is summed with read 1 where the step depends on it, else, if wanted, with read 2.
  bool sums_late() const { return !scaled() && rms != nullptr; }

  void finish(double p, double u, double* step) const {
    const double n = double(elements);
    const double rms_p = scaled() ? tensor_rule.rms(p, n) : 0.0;
    tensor_rule.finish(rms_p, tensor_rule.rms(u, n), step[0], step[1]);
  }

  void report(double p) const {
    if (rms == nullptr) return;
    const T value = T(tensor_rule.rms(p, double(elements)));
    std::memcpy(rms, &value, sizeof(T));
  }
};

template <class T, bool Momentum>
struct MatrixTensor : FactoredTensor<T, Momentum> {
  using Base = FactoredTensor<T, Momentum>;
  using Base::launch, Base::tensor, Base::rule;
  static constexpr int kSlots = MatrixRow::kMomentum + Momentum;
  MatrixCut cut;
  Sums sums;
  T *partial, *factor;  // of this thread: sums of a small matrix, column factors

  MatrixTensor(const Launch& launch, int64_t t, char* thread_scratch)
      : Base(launch, t, kSlots),
        cut(tensor[kSlots + MatrixRow::kBatch], tensor[kSlots + MatrixRow::kRows],
            tensor[kSlots + MatrixRow::kCols]),
        sums(launch.scratch + launch.scratch_of[t], cut, sizeof(T)),
        factor(reinterpret_cast<T*>(thread_scratch)) {
    this->elements = cut.batch * cut.rows * cut.cols;
    partial = factor + cut.cols;
  }

  Matrix<T> matrix(int64_t b) const {
    auto at = [&](int slot, int64_t elements) {
      return reinterpret_cast<char*>(tensor[slot]) + b * elements * item_bytes(launch.dtypes[slot]);
    };
    const int64_t area = cut.rows * cut.cols;
    Matrix<T> x{launch.dtypes, at(0, area), at(2, cut.rows), at(3, cut.cols),  nullptr,
                at(1, area),   cut.rows,    cut.cols,        this->grad_scale, cut.at_once()};
    if (Momentum) x.m = at(MatrixRow::kMomentum, area);
    return x;
  }

  // One small matrix: read 1, its columns, and sum(u^2), which is returned.
  double read_matrix(const Matrix<T>& x, double& p) const {
    double smallest_col = INFINITY, least;
    const double smallest_row = read_blocks(x);
    if (this->scaled()) add_parameter_squares(x, 0, cut.rows, p);
    const T mean = mean_of_rows<T>(rule, x);
    double energy = 0.0;
    for (int64_t column = 0; column < cut.cols; column += kTile) {
      energy += finish_columns(rule, x, partial, mean, column, least);
      smallest_col = std::min(smallest_col, least);
    }
    return rule.is_capped(T(smallest_row), T(smallest_col), mean) ? exact_energy(x, mean) : energy;
  }

  // Read 1 of all blocks of a small matrix; returns the smallest row moment.
  double read_blocks(const Matrix<T>& x) const {
    double smallest = INFINITY;
    for (int64_t b = 0; b < cut.blocks; ++b) {
      T* s = partial + 2 * b * cut.cols;
      const int64_t end = std::min<int64_t>((b + 1) * kBlock, cut.rows);
      smallest = std::min(smallest, read_block(rule, x, b * kBlock, end, s, s + cut.cols));
    }
    return smallest;
  }

  double exact_energy(const Matrix<T>& x, T mean) const {
    column_factors(rule, x, factor);
    double energy = 0.0;
    for (int64_t b = 0; b < cut.blocks; ++b) {
      const int64_t end = std::min<int64_t>((b + 1) * kBlock, cut.rows);
      energy += block_energy(rule, x, b * kBlock, end, mean, factor);
    }
    return energy;
  }

  void read_piece(int64_t piece, double& p, double& u) const {
    p = u = 0.0;
    for (int64_t b = piece * cut.per_piece; b < end_of(piece); ++b) u += read_matrix(matrix(b), p);
  }

  void update_piece(int64_t piece, const double* step, double& p,
                    const char* next_gradient = nullptr) const {
    update_matrices(piece, step, p, next_gradient,
                    [&](const Matrix<T>& x, int64_t) { return mean_of_rows<T>(rule, x); });
  }

  // `mean_of` gives the mean of a matrix's rows.
  template <class MeanOf>
  void update_matrices(int64_t piece, const double* step, double& p, const char* next_gradient,
                       MeanOf mean_of) const {
    double unwanted = 0.0;
    if (this->sums_late()) p = 0.0;
    for (int64_t b = piece * cut.per_piece; b < end_of(piece); ++b) {
      const Matrix<T> x = matrix(b);
      column_factors(rule, x, factor);
      update_rows<T, Momentum>(rule, x, 0, cut.rows, mean_of(x, b), factor, T(step[0]), T(step[1]),
                               this->sums_late() ? p : unwanted, next_gradient);
    }
  }

  int64_t end_of(int64_t piece) const { return std::min(cut.batch, (piece + 1) * cut.per_piece); }

  // A large matrix: `block` counts through the whole tensor.
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
    sums.smallest_row[piece] = read_block(rule, x, at.begin, at.end, s, s + cut.cols);
  }

  void columns(int64_t index) const {
    const int64_t entries = (cut.tiles + kColumnTiles - 1) / kColumnTiles;
    const int64_t b = index / entries, first = index % entries * kColumnTiles;
    const Matrix<T> x = matrix(b);
    const T mean = mean_of_rows<T>(rule, x);
    if (first == 0) sums.mean[b] = mean;
    for (int64_t tile = first; tile < std::min(first + kColumnTiles, cut.tiles); ++tile) {
      const int64_t k = b * cut.tiles + tile;
      sums.energy[k] = finish_columns(rule, x, block_partial(b * cut.blocks), mean, tile * kTile,
                                      sums.smallest_col[k]);
    }
  }

  bool capped(int64_t b) const {
    const double* row = sums.smallest_row + b * cut.blocks;
    const double* col = sums.smallest_col + b * cut.tiles;
    return rule.is_capped(T(*std::min_element(row, row + cut.blocks)),
                          T(*std::min_element(col, col + cut.tiles)), T(sums.mean[b]));
  }

  void energy(int64_t block) const {
    const Block at = block_at(block);
    if (!(tensor_rule_cap() < INFINITY) || !capped(at.matrix)) return;
    const Matrix<T> x = matrix(at.matrix);
    column_factors(rule, x, factor);
    sums.u[block] = block_energy(rule, x, at.begin, at.end, T(sums.mean[at.matrix]), factor);
  }
  double tensor_rule_cap() const { return this->tensor_rule.cap; }

  double tensor_energy() const {
    if (!cut.blocked) return sum_in_order(sums.u, cut.pieces);
    double u = 0.0;
    for (int64_t b = 0; b < cut.batch; ++b)
      u += capped(b) ? sum_in_order(sums.u + b * cut.blocks, cut.blocks)
                     : sum_in_order(sums.energy + b * cut.tiles, cut.tiles);
    return u;
  }

  void finish_tensor() const {
    this->finish(sum_in_order(sums.p, cut.pieces), tensor_energy(), sums.step);
  }

  void update(int64_t piece) const {
    if (!cut.blocked) return update_piece(piece, sums.step, sums.p[piece]);
    const Block at = block_at(piece);
    const Matrix<T> x = matrix(at.matrix);
    double unwanted = 0.0;
    double& squares = this->sums_late() ? sums.p[piece] : unwanted;
    column_factors(rule, x, factor);
    update_rows<T, Momentum>(rule, x, at.begin, at.end, T(sums.mean[at.matrix]), factor,
                             T(sums.step[0]), T(sums.step[1]), squares, nullptr);
  }
};

template <class T, bool Momentum>
struct VectorTensor : FactoredTensor<T, Momentum> {
  using Base = FactoredTensor<T, Momentum>;
  using Base::launch, Base::tensor, Base::rule;
  static constexpr int kSlots = VectorRow::kMomentum + Momentum;
  MatrixCut cut;
  Sums sums;

  VectorTensor(const Launch& launch, int64_t t, char*)
      : Base(launch, t, kSlots),
        cut(tensor[kSlots + VectorRow::kElements], 1, 1),
        sums(launch.scratch + launch.scratch_of[t], cut, sizeof(T)) {
    this->elements = cut.batch;
  }

  char* at(int slot, int64_t i) const {
    return reinterpret_cast<char*>(tensor[slot]) + i * item_bytes(launch.dtypes[slot]);
  }

  double parameter_squares(int64_t begin, int64_t end) const {
    return with_storage(launch.dtypes[0], [&](auto* storage) {
      using S = std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>;
      double total[1];
      row_square_sums<T>(end - begin, RowGroup<T, S>(at(0, begin), 0, 1, T(1)), total);
      return total[0];
    });
  }

  // The sums run tile by tile, so v and u are made a tile at a time.
  void read_piece(int64_t piece, double& p, double& u) const {
    const int64_t begin = piece * kPiece, end = std::min<int64_t>(begin + kPiece, cut.batch);
    p = this->scaled() ? parameter_squares(begin, end) : 0.0;
    u = 0.0;
    for (int64_t i = begin; i < end; i += kTile) {
      const int64_t n = std::min<int64_t>(kTile, end - i);
      T g_buffer[kTile], v_buffer[kTile], square[kTile];
      const T* g = load<T>(launch.dtypes[1], at(1, i), n, this->grad_scale, g_buffer);
      T* v = load(launch.dtypes[2], at(2, i), n, v_buffer);
      FUSEDSTEP_INDEPENDENT
      for (int64_t j = 0; j < n; ++j) v[j] = rule.second_moment(v[j], g[j] * g[j]);
      settle(launch.dtypes[2], at(2, i), n, v);
      FUSEDSTEP_INDEPENDENT
      for (int64_t j = 0; j < n; ++j) {
        const T update = rule.precondition(g[j], rule.col_factor(v[j]));
        square[j] = update * update;
      }
      u += double(tile_sum(square, n));
    }
  }

  void update_piece(int64_t piece, const double* step, double& p, const char* = nullptr) const {
    const int64_t begin = piece * kPiece, end = std::min<int64_t>(begin + kPiece, cut.batch);
    const T step_size = T(step[0]), decay = T(step[1]);
    T p_buffer[kTile], g_buffer[kTile], v_buffer[kTile], m_buffer[kTile];
    if (this->sums_late()) p = parameter_squares(begin, end);
    for (int64_t i = begin; i < end; i += kTile) {
      const int64_t n = std::min<int64_t>(kTile, end - i);
      T* p = load(launch.dtypes[0], at(0, i), n, p_buffer);
      const T* g = load(launch.dtypes[1], at(1, i), n, this->grad_scale, g_buffer);
      const T* v = load(launch.dtypes[2], at(2, i), n, T(1), v_buffer);
      if constexpr (Momentum) {
        constexpr int kM = VectorRow::kMomentum;
        T* m = load(launch.dtypes[kM], at(kM, i), n, m_buffer);
        FUSEDSTEP_INDEPENDENT
        for (int64_t j = 0; j < n; ++j)
          rule.update(p[j], m[j], rule.precondition(g[j], rule.col_factor(v[j])), step_size, decay);
        store(launch.dtypes[kM], at(kM, i), n, m);
      } else {
        FUSEDSTEP_INDEPENDENT
        for (int64_t j = 0; j < n; ++j)
          rule.update(p[j], rule.precondition(g[j], rule.col_factor(v[j])), step_size, decay);
      }
      store(launch.dtypes[0], at(0, i), n, p);
    }
  }

  void statistics(int64_t piece) const { read_piece(piece, sums.p[piece], sums.u[piece]); }
  void columns(int64_t) const {}
  void energy(int64_t) const {}
  void finish_tensor() const {
    this->finish(sum_in_order(sums.p, cut.pieces), sum_in_order(sums.u, cut.pieces), sums.step);
  }
  void update(int64_t piece) const { update_piece(piece, sums.step, sums.p[piece]); }
};

template <class Tensor>
void walk_factored(const Launch& launch, const Entry& entry, char* thread_scratch) {
  const Tensor tensor(launch, entry.tensor, thread_scratch);
  switch (entry.kind) {
    case kWhole: {
      double p, u, step[2];
      tensor.read_piece(0, p, u);
      tensor.finish(p, u, step);
      const char* next = nullptr;
      if ((&entry)[1].kind == kWhole && (&entry)[1].tensor == entry.tensor + 1)
        next = reinterpret_cast<const char*>(tensor.tensor[launch.fields + MatrixRow::kG]);
      tensor.update_piece(0, step, p, next);
      return tensor.report(p);
    }
    case kStatistics:
      return tensor.statistics(entry.index);
    case kColumns:
      return tensor.columns(entry.index);
    case kEnergy:
      return tensor.energy(entry.index);
    case kFinish:
      return tensor.finish_tensor();
    case kUpdate:
      return tensor.update(entry.index);
    case kReport:
      return tensor.report(sum_in_order(tensor.sums.p, tensor.cut.pieces));
  }
}

}  // namespace
}  // namespace fusedstep
