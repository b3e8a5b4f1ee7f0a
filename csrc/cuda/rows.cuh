// Adafactor on matrices with rows too long for one unit: row moments from the sums of their chunks.
#pragma once

#include "factored_tensor.cuh"

namespace fusedstep::cuda {

// The sum of g^2 along a row, counted through the tensor, from the sums of its chunks.
template <class T>
__device__ __forceinline__ double sum_of_chunks(const FactoredTensor<T>& tensor, int64_t row) {
  const T* sums = tensor.partials() + row * tensor.cut.chunks;
  double sum = 0.0;
  for (int64_t chunk = 0; chunk < tensor.cut.chunks; ++chunk) sum += double(sums[chunk]);
  return sum;
}

// Makes the row moments of a block of rows. `mean_square` gives the mean of g^2 along a row, counted
// through the tensor.
template <class T, class MeanSquare>
__device__ __forceinline__ void row_moments(const FactoredTensor<T>& tensor, int unit,
                                            MeanSquare mean_square) {
  const Cut& cut = tensor.cut;
  const int64_t rows = tensor.rows();
  const int64_t matrix = unit / int(cut.row_blocks), block = unit % int(cut.row_blocks);
  const int64_t first = block * cut.unit_rows;
  const int64_t end = first + cut.unit_rows < rows ? first + cut.unit_rows : rows;
  const Slot<kAny> moments = tensor.template slot<kAny>(2).from(matrix * rows);
  double sum_of_rows = 0.0, least_row = INFINITY;
  for (int64_t row = first + thread(); row < end; row += kThreads) {
    const T moment = tensor.update_moment(moments, row, mean_square(matrix * rows + row));
    sum_of_rows += double(moment);
    if (double(moment) < least_row) least_row = double(moment);
  }
  sum_of_rows = block_sum(sum_of_rows);
  least_row = block_least(least_row);
  if (thread() != 0) return;
  tensor.sums(cut.rows_at)[2 * unit] = sum_of_rows;
  tensor.sums(cut.rows_at)[2 * unit + 1] = least_row;
}

template <class T>
__device__ __forceinline__ void row_moments(const FactoredTensor<T>& tensor, int unit) {
  row_moments(tensor, unit,
              [&](int64_t row) { return T(sum_of_chunks(tensor, row) / double(tensor.cols())); });
}

}  // namespace fusedstep::cuda
