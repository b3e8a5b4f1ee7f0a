// Adafactor's sums on their way through an exchange: what a bucket has to do more, or in another way,
// whose sums may be added up over processes between the stages of a step.
//
// `exchange` and `sum_u2` of `KernelArgs` are laid out as python/fusedstep/plan/launcher.py says. They
// are float64, as the other long sums are: an exchange that changes nothing changes no bit.
#pragma once

#include "columns.cuh"

namespace fusedstep::cuda {

// What is exchanged of one matrix of a batch.
struct ExchangedMatrix {
  double *s, *h, *sum_of_rows;

  template <class T>
  __device__ __forceinline__ ExchangedMatrix(const FactoredTensor<T>& tensor, int64_t matrix)
      : s(tensor.exchange(matrix * (2 * tensor.cols() + 1))),
        h(s + tensor.cols()),
        sum_of_rows(h + tensor.cols()) {}
};

// ... and of a whole tensor, behind its matrices.
template <class T>
__device__ __forceinline__ double* exchanged_sum_of_p2(const FactoredTensor<T>& tensor) {
  if (tensor.args.vectors) return tensor.exchange(0);
  return tensor.exchange(tensor.batch() * (2 * tensor.cols() + 1));
}

// The sums down a run of columns, from those of the units; with the first run, the sum of the row
// moments.
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

// The sum of p^2; 0 where the step does not depend on it, and nobody has summed it.
template <class T>
__device__ __forceinline__ void pack_squares(const FactoredTensor<T>& tensor) {
  const double sum = tensor.scaled() ? tensor.sum_of_p2() : 0.0;
  if (thread() == 0) *exchanged_sum_of_p2(tensor) = sum;
}

// Finishes a run of columns from the sums that were exchanged. Of sum(u^2) every process adds up what
// its own rows have, so h is that of these rows.
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

// Step size and decay of a tensor, from the sums that were exchanged.
template <class T>
__device__ __forceinline__ void finish_exchanged(const FactoredTensor<T>& tensor, int64_t index) {
  finish(tensor, tensor.args.sum_u2[index], [&] { return *exchanged_sum_of_p2(tensor); });
}

}  // namespace fusedstep::cuda
