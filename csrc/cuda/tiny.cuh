// Adafactor on a batch of tiny matrices, such as 3 x 3 convolutions: one matrix per thread.
#pragma once

#include "factored_tensor.cuh"

namespace fusedstep::cuda {

template <class T>
struct TinyMatrix {
  const FactoredTensor<T>& tensor;
  int64_t matrix;
  int rows, cols;
  bool exists;
  Slot<kAny> g, row, col;
  T scale;

  __device__ __forceinline__ TinyMatrix(const FactoredTensor<T>& tensor, int unit)
      : tensor(tensor),
        matrix(int64_t(unit) * kTinyMatrices + thread()),
        rows(int(tensor.rows())),
        cols(int(tensor.cols())),
        exists(matrix < tensor.batch()),
        g(tensor.template slot<kAny>(1).from(matrix * rows * cols)),
        row(tensor.template slot<kAny>(2).from(matrix * rows)),
        col(tensor.template slot<kAny>(3).from(matrix * cols)),
        scale(tensor.gradient_scale()) {}

  __device__ __forceinline__ T gradient(int i, int j) const {
    return g.template load_one<T>(i * cols + j) * scale;
  }
  __device__ __forceinline__ T row_moment(int i) const { return row.template load_one<T>(i); }
  __device__ __forceinline__ T col_moment(int j) const { return col.template load_one<T>(j); }

  __device__ __forceinline__ T mean_of_rows() const {
    double sum = 0.0;
    for (int i = 0; i < rows; ++i) sum += double(row_moment(i));
    return tensor.rule().floored_mean(T(sum / double(rows)));
  }

  // Calls `take` with every (place, u).
  template <class Take>
  __device__ __forceinline__ void for_each_u(T mean, Take take) const {
    for (int i = 0; i < rows; ++i) {
      const T row_factor = tensor.rule().row_factor(row_moment(i), mean);
      for (int j = 0; j < cols; ++j) {
        const T factor = row_factor * tensor.rule().col_factor(col_moment(j));
        take(i * cols + j, tensor.rule().precondition(gradient(i, j), factor));
      }
    }
  }

  // Makes the moments and returns the sum of u^2.
  __device__ __forceinline__ double update_moments() const {
    T least_row = T(INFINITY), least_col = T(INFINITY);
    for (int i = 0; i < rows; ++i) {
      T square = T(0);
      for (int j = 0; j < cols; ++j) square += gradient(i, j) * gradient(i, j);
      const T moment = tensor.update_moment(row, i, div(square, T(cols)));
      if (moment < least_row) least_row = moment;
    }
    const T mean = mean_of_rows();
    double sum_u2 = 0.0;
    for (int j = 0; j < cols; ++j) {
      T s = T(0), h = T(0);
      for (int i = 0; i < rows; ++i) {
        const T square = gradient(i, j) * gradient(i, j);
        s += square;
        h += square * tensor.rule().inverse(row_moment(i));
      }
      const T moment = tensor.update_moment(col, j, div(s, T(rows)));
      if (moment < least_col) least_col = moment;
      sum_u2 += double(tensor.rule().col_sum_u2(h, moment, mean));
    }
    if (!tensor.rule().is_capped(least_row, least_col, mean)) return sum_u2;
    sum_u2 = 0.0;
    for_each_u(mean, [&](int, T u) { sum_u2 += double(u * u); });
    return sum_u2;
  }
};

// P is kAny, or kAnyStored if the parameter or the momentum may be stored in other ways.
template <int P, class T>
__device__ __forceinline__ void tiny_read(const FactoredTensor<T>& tensor, int unit) {
  static_assert(kTinyMatrices == kThreads, "one matrix per thread");
  const TinyMatrix<T> own(tensor, unit);
  double u_sum = 0.0, p_sum = 0.0;
  if (own.exists) {
    u_sum = own.update_moments();
    if (tensor.sums_early()) {
      const auto p = tensor.template slot<P>(0).from(own.matrix * own.rows * own.cols);
      T sum = T(0);
      for (int i = 0; i < own.rows * own.cols; ++i) {
        const T x = p.template load_one<T>(i);
        sum += x * x;
      }
      p_sum = double(sum);
    }
  }
  u_sum = block_sum(u_sum);
  p_sum = block_sum(p_sum);
  if (thread() != 0) return;
  tensor.sums(tensor.cut.u_at)[unit] = u_sum;
  tensor.sums(tensor.cut.p_at)[unit] = p_sum;
}

// The second read: parameter and momentum.
template <int P, int M, class T>
__device__ __forceinline__ void tiny_update(const FactoredTensor<T>& tensor, int unit) {
  const TinyMatrix<T> own(tensor, unit);
  T squares = T(0);
  if (own.exists) {
    const Writer<P, M, T> writer(tensor, MatrixRow::kMomentum);
    const int64_t first = own.matrix * own.rows * own.cols;
    own.for_each_u(own.mean_of_rows(), [&](int i, T u) { squares += writer.write_one(first + i, u); });
  }
  if (!tensor.sums_late()) return;
  store_sum(tensor.sums(tensor.cut.late_at + unit), double(squares));
}

}  // namespace fusedstep::cuda
