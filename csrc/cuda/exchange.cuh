// The extra phases of Adafactor when processes add up its sums between the stages of a step.
//
// python/fusedstep/plan/launcher.py gives the layout of `exchange` and `sum_u2` of `KernelArgs`.
// They are float64, as all long sums are, so an exchange that changes nothing changes no bit.
#pragma once

#include "columns.cuh"

namespace fusedstep::cuda {

// The exchanged sums of one matrix of a batch.
struct ExchangedMatrix {
  double *s, *h, *sum_of_rows;

  template <class T>
  __device__ __forceinline__ ExchangedMatrix(const FactoredTensor<T>& tensor, int64_t matrix)
      : s(tensor.exchange(matrix * (2 * tensor.cols() + 1))),
        h(s + tensor.cols()),
        sum_of_rows(h + tensor.cols()) {}
};

// The exchanged sum of a whole tensor. It follows those of its matrices.
template <class T>
__device__ __forceinline__ double* exchanged_sum_of_p2(const FactoredTensor<T>& tensor) {
  if (tensor.args.vectors) return tensor.exchange(0);
  return tensor.exchange(tensor.batch() * (2 * tensor.cols() + 1));
}

// Sums down a run of columns, from the sums of the units. The first unit of a matrix also stores
// the sum of the row moments.
template <class T>
__device__ __forceinline__ void pack_columns(const FactoredTensor<T>& tensor, int unit) {
  const int64_t matrix = unit / tensor.cut.tiles, tile = unit % tensor.cut.tiles;
  const ExchangedMatrix exchanged(tensor, matrix);
  double sum_of_rows = 0.0;
  sums_of_units(
      tensor, matrix, tile,
      [&] {
        if (tile == 0) sum_of_rows = tensor.sum_of_rows(matrix);
      },
      [&](int64_t col, double s, double h) {
        exchanged.s[col] = s;
        exchanged.h[col] = h;
      });
  if (tile == 0 && thread() == 0) *exchanged.sum_of_rows = sum_of_rows;
}

// Stores the sum of p^2, or 0 if the step does not depend on it and it was not summed.
template <class T>
__device__ __forceinline__ void pack_squares(const FactoredTensor<T>& tensor) {
  const double sum = tensor.scaled() ? tensor.sum_of_p2() : 0.0;
  if (thread() == 0) *exchanged_sum_of_p2(tensor) = sum;
}

// Finishes a run of columns from the exchanged sums. Each process computes sum(u^2) of its own
// rows, so h is not the exchanged one.
template <class T>
__device__ __forceinline__ void columns_exchanged(const FactoredTensor<T>& tensor, int unit) {
  const int64_t matrix = unit / tensor.cut.tiles, tile = unit % tensor.cut.tiles;
  const double rows = double(tensor.rows());
  const ExchangedMatrix exchanged(tensor, matrix);
  Columns<T> own(tensor, matrix, tensor.rule().floored_mean(T(*exchanged.sum_of_rows / rows)));
  sums_of_units(
      tensor, matrix, tile, [] {},
      [&](int64_t col, double, double h) { own.finish(col, T(exchanged.s[col] / rows), T(h)); });
  own.store(tile);
}

template <class T>
__device__ __forceinline__ void total_u2(const FactoredTensor<T>& tensor, int64_t index) {
  const double sum = tensor.sum_of_u2();
  if (thread() == 0) tensor.args.sum_u2[index] = sum;
}

// Step size and decay of a tensor, from the exchanged sums.
template <class T>
__device__ __forceinline__ void finish_exchanged(const FactoredTensor<T>& tensor, int64_t index) {
  finish(tensor, tensor.args.sum_u2[index], [&] { return *exchanged_sum_of_p2(tensor); });
}

}  // namespace fusedstep::cuda
