// The extra work of Adafactor when processes add up its sums between the stages of a step.
//
// python/fusedstep/plan/launcher.py gives the layout of `exchange` and `of_tensors` of `KernelArgs`.
// They are float64, as all long sums are, so an exchange that changes nothing changes no bit. Means
// are over whole rows, columns and tensors, of which this process has a part, or nothing: then there
// are no units to add up, and the sums that it leaves are zeros.
#pragma once

#include "columns.cuh"
#include "rows.cuh"

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

// If columns are split, the sums along all rows of the tensor come last.
template <class T>
__device__ __forceinline__ double* exchanged_rows(const FactoredTensor<T>& tensor) {
  return exchanged_sum_of_p2(tensor) + 1;
}

// Adds up the chunks of a block of rows.
template <class T>
__device__ __forceinline__ void pack_rows(const FactoredTensor<T>& tensor, int unit) {
  const Cut& cut = tensor.cut;
  const int64_t matrix = unit / int(cut.row_blocks), first = unit % int(cut.row_blocks) * cut.unit_rows;
  const int64_t left = tensor.rows() - first, count = left < cut.unit_rows ? left : cut.unit_rows;
  double* sums = exchanged_rows(tensor);
  for (int64_t k = thread(); k < count; k += kThreads) {
    const int64_t row = matrix * tensor.rows() + first + k;
    sums[row] = sum_of_chunks(tensor, row);
  }
}

// Makes the row moments of a block of rows from the exchanged sums.
template <class T>
__device__ __forceinline__ void rows_exchanged(const FactoredTensor<T>& tensor, int64_t index,
                                               int unit) {
  const double* sums = exchanged_rows(tensor);
  const double cols = tensor.args.of_tensors[index].cols;
  row_moments(tensor, unit, [&](int64_t row) { return T(sums[row] / cols); });
}

// Sums down a run of columns, from the sums of the units. The first unit of a matrix also stores
// the sum of the row moments.
template <class T>
__device__ __forceinline__ void pack_columns(const FactoredTensor<T>& tensor, int unit) {
  const int64_t matrix = unit / tensor.cut.tiles, tile = unit % tensor.cut.tiles;
  const ExchangedMatrix exchanged(tensor, matrix);
  double sum_of_rows = 0.0;
  sums_of_units(
      tensor, matrix, tile, tensor.cut.row_blocks,
      [&] {
        if (tile == 0) sum_of_rows = tensor.sum_of_rows(matrix);
      },
      [&](int64_t col, double s, double h) {
        exchanged.s[col] = s;
        exchanged.h[col] = h;
      });
  if (tile == 0 && thread() == 0) *exchanged.sum_of_rows = sum_of_rows;
}

// Stores the sum of p^2, or 0 if it is not wanted and was not summed.
template <class T>
__device__ __forceinline__ void pack_squares(const FactoredTensor<T>& tensor) {
  const double sum = tensor.sums_early() ? tensor.sum_of_p2() : 0.0;
  if (thread() == 0) *exchanged_sum_of_p2(tensor) = sum;
}

// Finishes a run of columns from the exchanged sums. If a cap may change u, each process computes
// sum(u^2) of its own rows, so from its own h.
template <class T>
__device__ __forceinline__ void columns_exchanged(const FactoredTensor<T>& tensor, int64_t index,
                                                  int unit) {
  const int64_t matrix = unit / tensor.cut.tiles, tile = unit % tensor.cut.tiles;
  const OfTensor& whole = tensor.args.of_tensors[index];
  const double rows = whole.rows;
  const bool capped = whole.capped != 0.0;
  const ExchangedMatrix exchanged(tensor, matrix);
  Columns<T> own(tensor, matrix, tensor.rule().floored_mean(T(*exchanged.sum_of_rows / rows)));
  sums_of_units(
      tensor, matrix, tile, capped ? tensor.cut.row_blocks : 0, [] {},
      [&](int64_t col, double, double h) {
        own.finish(col, T(exchanged.s[col] / rows), T(capped ? h : exchanged.h[col]));
      });
  own.store(tile);
}

// Without rows here, sum(u^2) of them is 0, also where the moments of columns are.
template <class T>
__device__ __forceinline__ void total_u2(const FactoredTensor<T>& tensor, int64_t index) {
  OfTensor& whole = tensor.args.of_tensors[index];
  const bool is_nothing = whole.capped != 0.0 && tensor.elements() == 0;
  const double sum = is_nothing ? 0.0 : tensor.sum_of_u2();
  if (thread() == 0) whole.sum_u2 = sum;
}

// Step size, decay and rms(p) of a tensor, from the exchanged sums.
template <class T>
__device__ __forceinline__ void finish_exchanged(const FactoredTensor<T>& tensor, int64_t index) {
  const OfTensor& whole = tensor.args.of_tensors[index];
  const auto rule = rule_of<Adafactor<double>, double>(tensor.scalars);
  double rms_p = 0.0;
  if (tensor.sums_early()) {
    rms_p = rule.rms(*exchanged_sum_of_p2(tensor), whole.elements);
    tensor.store_rms(rms_p);
  }
  if (thread() == 0) {
    double* step = tensor.sums(tensor.cut.step_at);
    rule.finish(rms_p, rule.rms(whole.sum_u2, whole.elements), step[0], step[1]);
  }
}

}  // namespace fusedstep::cuda
