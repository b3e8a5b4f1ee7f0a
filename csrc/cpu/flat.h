// A factored step on one run of elements of a matrix, or of a batch: see python/fusedstep/plan/flat.py.
// Rows are cut into the same blocks and pieces as those of the whole tensor, and this process walks the
// pieces that its run touches. In a block it has up to three parts: the end of a row, whole rows, the
// beginning of a row. Each is a small matrix of its own, so the walkers of matrices take it.
#pragma once

#include "matrix_tensor.h"

namespace fusedstep {
namespace {

// Adds the squares of a part: to the sums along its rows, and to the sums down its columns.
template <class T>
void add_squares(const Matrix<T>& x, double* rows, T* columns) {
  with_gradient_storage(x, [&](auto* storage) {
    using S = std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>;
    for (int64_t i = 0; i < x.rows; i += kGroup) {
      const RowGroup<T, S> group = gradient_rows<T, S>(x, i, x.rows);
      double total[kGroup];
      row_square_sums<T>(x.cols, group.count, group, total);
      std::copy(total, total + group.count, rows + i);
      by_lanes(x.cols, [&](int64_t j, auto n) FUSEDSTEP_LAMBDA {
        const Lanes<T> sum = fold_group([&](int r) FUSEDSTEP_LAMBDA {
          const Lanes<T> g = r < group.count ? group(r, j, n) : Lanes<T>(T(0));
          return g * g;
        });
        narrow(columns + j, widen<T>(columns + j, n) + sum, n, Place{});
      });
    }
  });
}

// New moments of n whole rows or columns, from the sums of their `count` squares each.
template <class T, class Rule>
void update_moments(const Rule& rule, const Stored& moments, int64_t n, const double* sums,
                    double count) {
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t width = std::min<int64_t>(kTile, n - i);
    const Stored at = moments.from(i);
    T buffer[kTile];
    T* moment = load(at, width, buffer);
    FUSEDSTEP_INDEPENDENT
    for (int64_t k = 0; k < width; ++k)
      moment[k] = rule.second_moment(moment[k], T(sums[i + k] / count));
    round_to_storage(at, width, moment);
  }
}

template <class T, bool Momentum>
struct FlatMatrix : MatrixTensor<T, Momentum> {
  using Base = MatrixTensor<T, Momentum>;
  using Base::cut, Base::launch, Base::rule, Base::sums, Base::slot, Base::factor;
  OfTensor& whole;
  const FlatRun run;
  double* first;  // the tensor's first sum

  FlatMatrix(const LaunchArgs& launch, int64_t t, char* thread_scratch)
      : Base(launch, t, thread_scratch),
        whole(launch.exchange.of_tensors[t]),
        run(cut, whole),
        first(launch.exchange.sums + launch.exchange.sums_of[t]) {
    sums = Sums(launch.scratch + launch.scratch_of[t], run.touched, sizeof(T));
    this->elements = int64_t(whole.elements);
  }

  // The sums down the columns of each matrix; sum p^2; the sums along the rows of each matrix.
  double* column_sums(int64_t b) const { return first + b * cut.cols; }
  double& sum_p2() const { return *column_sums(cut.batch); }
  double* row_sums(int64_t b) const { return column_sums(cut.batch) + 1 + b * cut.rows; }

  int64_t column_entries() const { return (cut.tiles + kColumnTiles - 1) / kColumnTiles; }
  T* block_partial(int64_t index) const {
    return reinterpret_cast<T*>(sums.partial) + index * cut.cols;
  }

  // Calls `function(b, begin, end)` for the blocks of rows of a piece of the whole tensor.
  template <class Function>
  void for_blocks(int64_t piece, Function&& function) const {
    if (cut.blocked) {
      const auto at = this->block_at(piece);
      return function(at.matrix, at.begin, at.end);
    }
    for (int64_t b = piece * cut.per_piece; b < this->end_of(piece); ++b)
      for (int64_t i = 0; i < cut.rows; i += kBlock)
        function(b, i, std::min<int64_t>(i + kBlock, cut.rows));
  }

  // Calls `function(x, row, column)` for what is here of the rows begin..end of matrix b: x begins at
  // this row and column.
  template <class Function>
  void for_parts(int64_t b, int64_t begin, int64_t end, Function&& function) const {
    const int64_t matrix = b * cut.rows;
    const int64_t last = std::min(run.end, (matrix + end) * cut.cols);
    for (int64_t at = std::max(run.start, (matrix + begin) * cut.cols); at < last;) {
      const int64_t row = at / cut.cols, column = at % cut.cols;
      const bool is_whole = column == 0 && last - at >= cut.cols;
      const int64_t rows = is_whole ? (last - at) / cut.cols : 1;
      const int64_t cols = is_whole ? cut.cols : std::min(cut.cols - column, last - at);
      function(part(b, row, column, rows, cols), row - matrix, column);
      at += rows * cols;
    }
  }

  // `row` counts through the whole tensor.
  Matrix<T> part(int64_t b, int64_t row, int64_t column, int64_t rows, int64_t cols) const {
    const int64_t from = row * cut.cols + column - run.start;
    Matrix<T> x = Base::matrix(b);
    x.rows = rows, x.cols = cols;
    x.p = slot(MatrixRow::kP).from(from), x.g = slot(MatrixRow::kG).from(from);
    x.row = slot(MatrixRow::kRow).from(row), x.col = x.col.from(column);
    if (Momentum) x.m = slot(MatrixRow::kMomentum).from(from);
    x.first = from;
    return x;
  }

  void statistics(int64_t index) const {
    double& p = sums.p[index] = 0.0;
    T* s = cut.blocked ? block_partial(index) : this->partial;
    for_blocks(run.first_piece + index, [&](int64_t b, int64_t begin, int64_t end) {
      std::fill(s, s + cut.cols, T(0));
      for_parts(b, begin, end, [&](const Matrix<T>& x, int64_t row, int64_t column) {
        add_squares(x, row_sums(b) + row, s + column);
        if (this->wants_p2()) add_parameter_squares(x, 0, x.rows, p);
      });
      if (!cut.blocked)
        for (int64_t j = 0; j < cut.cols; ++j) column_sums(b)[j] += double(s[j]);
    });
  }

  // Adds up the blocks of a large matrix, for some tiles of columns.
  void pack_columns(int64_t index) const {
    const int64_t b = index / column_entries(), begin = first_column(index);
    const int64_t end = std::max<int64_t>(0, (b + 1) * cut.blocks - run.first_piece);
    for (int64_t k = std::max<int64_t>(0, b * cut.blocks - run.first_piece);
         k < std::min(end, run.touched.pieces); ++k)
      for (int64_t j = begin; j < end_column(index); ++j)
        column_sums(b)[j] += double(block_partial(k)[j]);
  }
  int64_t first_column(int64_t index) const { return index % column_entries() * kColumnTiles * kTile; }
  int64_t end_column(int64_t index) const {
    return std::min<int64_t>(first_column(index) + kColumnTiles * kTile, cut.cols);
  }
  void pack_tensor() const { sum_p2() = sum_in_order(sums.p, run.touched.pieces); }

  // Every process has the moments of all rows and columns.
  void row_moments(int64_t piece) const {
    for_blocks(piece, [&](int64_t b, int64_t begin, int64_t end) {
      const Matrix<T> x = Base::matrix(b);
      update_moments<T>(rule, x.row.from(begin), end - begin, row_sums(b) + begin, whole.cols);
    });
  }
  void column_moments(int64_t index) const {
    if (!cut.blocked) {
      for (int64_t b = index * cut.per_piece; b < this->end_of(index); ++b)
        column_moments(b, 0, cut.cols);
      return;
    }
    const int64_t b = index / column_entries(), begin = first_column(index);
    if (begin == 0) sums.mean[b] = mean_of_rows<T>(rule, Base::matrix(b));
    column_moments(b, begin, end_column(index));
  }
  void column_moments(int64_t b, int64_t begin, int64_t end) const {
    const Matrix<T> x = Base::matrix(b);
    update_moments<T>(rule, x.col.from(begin), end - begin, column_sums(b) + begin, whole.rows);
  }

  // Calls `function(x, mean)` for the parts of a piece that are here.
  template <class Function>
  void for_means(int64_t index, Function&& function) const {
    int64_t known = -1;  // the matrix whose mean is known
    T mean = T(0);
    for_blocks(run.first_piece + index, [&](int64_t b, int64_t begin, int64_t end) {
      for_parts(b, begin, end, [&](const Matrix<T>& x, int64_t, int64_t) {
        if (b != known) {
          mean = cut.blocked ? T(sums.mean[b]) : mean_of_rows<T>(rule, Base::matrix(b));
          known = b;
        }
        function(x, mean);
      });
    });
  }

  void block_u2(int64_t index) const {
    double u2 = 0.0;
    for_means(index, [&](const Matrix<T>& x, T mean) {
      u2 = block_sum_u2(rule, x, 0, x.rows, mean, factor, u2);
    });
    sums.u[index] = u2;
  }
  void total_u2() const { whole.sum_u2 = sum_in_order(sums.u, run.touched.pieces); }

  void set_step() const { this->make_step(sum_p2(), whole.sum_u2, sums.step); }

  void update(int64_t index) const {
    for_means(index, [&](const Matrix<T>& x, T mean) {  // read 1 has summed p^2
      update_rows<T, Momentum>(rule, x, 0, x.rows, mean, factor, T(sums.step[0]), T(sums.step[1]),
                               nullptr, nullptr);
    });
  }
};

template <class Tensor>
void walk_flat(const LaunchArgs& launch, const Entry& entry, char* thread_scratch) {
  const Tensor tensor(launch, entry.tensor, thread_scratch);
  switch (entry.kind) {
    case kStatistics:
      return tensor.statistics(entry.index);
    case kPackColumns:
      return tensor.pack_columns(entry.index);
    case kPackTensor:
      return tensor.pack_tensor();
    case kRowMoments:
      return tensor.row_moments(entry.index);
    case kColumns:
      return tensor.column_moments(entry.index);
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
