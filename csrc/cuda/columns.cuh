// Adafactor's column moments, from the sums down whole columns.
#pragma once

#include "band.cuh"

namespace fusedstep::cuda {

// The columns of a matrix that a block finishes: tile number `tile`.
template <class T>
struct Columns {
  const FactoredTensor<T>& tensor;
  int64_t matrix;
  T mean;  // of the rows
  Slot<kAny> slot;
  double sum_u2 = 0.0, least = INFINITY;  // over this thread's columns

  __device__ __forceinline__ Columns(const FactoredTensor<T>& tensor, int64_t matrix, T mean)
      : tensor(tensor),
        matrix(matrix),
        mean(mean),
        slot(tensor.template slot<kAny>(3).from(matrix * tensor.cols())) {}

  // A column's moment, factor and part of sum(u^2), from the mean of its g^2 and the sum of its
  // g^2 / row.
  __device__ __forceinline__ void finish(int64_t col, T mean_square, T h) {
    const T moment = tensor.update_moment(slot, col, mean_square);
    tensor.col_factors(matrix)[col] = tensor.rule().col_factor(moment);
    sum_u2 += double(tensor.rule().col_sum_u2(h, moment, mean));
    if (double(moment) < least) least = double(moment);
  }

  __device__ __forceinline__ void store(int64_t tile) const {
    const Cut& cut = tensor.cut;
    const double sum = block_sum(sum_u2), smallest = block_least(least);
    if (thread() != 0) return;
    *tensor.sums(cut.u_at + matrix * cut.tiles + tile) = sum;
    *tensor.sums(cut.least_col_at + matrix * cut.tiles + tile) = smallest;
    if (tile == 0) *tensor.sums(cut.mean_at + matrix) = double(mean);
  }
};

// Adds up each column over a block's threads. `take` gets a column of the band and both sums.
template <int Columns, int N, bool kAligned, class T, class Take>
__device__ __forceinline__ void sums_down_columns(const Arrangement<Columns, N, kAligned>& threads,
                                                  const T (&s)[Columns], const T (&h)[Columns],
                                                  Take take) {
  static_assert(2 * sizeof(T) * N * kThreads <= sizeof(Shared::work), "a strip's sums fit on chip");
  const bool in_warp = threads.per_row < kWarp;  // a warp has several rows
  const int group = in_warp ? thread() / kWarp : threads.row;
  const int groups = in_warp ? kWarps : threads.rows;
  const int length = threads.per_row * N;
  T* s_sums = reinterpret_cast<T*>(shared().work);
  T* h_sums = s_sums + groups * length;
  // Threads side by side store N columns apart, which would be N conflicts of banks. So columns of
  // each run of 32 are exchanged, in another way for each of N runs.
  auto place = [](int c) { return c ^ (c / kWarp & (N - 1)); };
#pragma unroll
  for (int strip = 0; strip < Columns / N; ++strip) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      T s_sum = s[strip * N + k], h_sum = h[strip * N + k];
      for (int offset = threads.per_row; offset < kWarp; offset *= 2) {
        s_sum += __shfl_xor_sync(kAllLanes, s_sum, offset);
        h_sum += __shfl_xor_sync(kAllLanes, h_sum, offset);
      }
      if (!in_warp || thread() % kWarp < threads.per_row) {
        const int at = group * length + place(threads.column_of(k));
        s_sums[at] = s_sum;
        h_sums[at] = h_sum;
      }
    }
    __syncthreads();
    for (int c = thread(); c < length; c += kThreads) {
      const int col = threads.strip_begin(strip) + c;
      if (col >= threads.width) break;
      const int at = place(c);
      T s_sum = s_sums[at], h_sum = h_sums[at];
      for (int other = 1; other < groups; ++other) {
        s_sum += s_sums[other * length + at];
        h_sum += h_sums[other * length + at];
      }
      take(col, s_sum, h_sum);
    }
    __syncthreads();
  }
}

// Adds up the units' sums of a run of columns, over blocks of rows. One thread calls `take` with a
// column and both sums. All threads call `meanwhile` while they wait.
template <class T, class Meanwhile, class Take>
__device__ __forceinline__ void sums_of_units(const FactoredTensor<T>& tensor, int64_t matrix,
                                              int64_t tile, int64_t row_blocks, Meanwhile meanwhile,
                                              Take take) {
  constexpr int kAtOnce = 4;  // units whose sums a thread loads before it adds the first
  const Cut& cut = tensor.cut;
  const int64_t cols = tensor.cols();
  const int width = int(cut.tile_cols), groups = kThreads / width, blocks = int(row_blocks);
  const int column = thread() % width, group = thread() / width;
  const int64_t col = tile * width + column;
  const T* from = tensor.partials() + matrix * cut.row_blocks * 2 * cols + col;
  double s = 0.0, h = 0.0;
  if (col < cols) {
#pragma unroll 1
    for (int block = group; block < blocks; block += kAtOnce * groups) {
      T own_s[kAtOnce] = {}, own_h[kAtOnce] = {};
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int64_t own = block + k * groups;
        if (own >= blocks) break;
        own_s[k] = from[own * 2 * cols];
        own_h[k] = from[own * 2 * cols + cols];
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        s += double(own_s[k]);
        h += double(own_h[k]);
      }
    }
  }
  double* of_groups = reinterpret_cast<double*>(shared().work);
  of_groups[2 * thread()] = s;
  of_groups[2 * thread() + 1] = h;
  meanwhile();
  __syncthreads();
  if (group == 0 && col < cols) {
    for (int other = 1; other < groups; ++other) {
      s += of_groups[2 * (other * width + column)];
      h += of_groups[2 * (other * width + column) + 1];
    }
    take(col, s, h);
  }
}

// Finishes a run of columns.
template <class T>
__device__ __forceinline__ void columns(const FactoredTensor<T>& tensor, int unit) {
  const int64_t matrix = unit / tensor.cut.tiles, tile = unit % tensor.cut.tiles;
  Columns<T> own(tensor, matrix, T(0));
  sums_of_units(
      tensor, matrix, tile, tensor.cut.row_blocks, [&] { own.mean = tensor.mean_of_rows(matrix); },
      [&](int64_t col, double s, double h) { own.finish(col, T(s / double(tensor.rows())), T(h)); });
  own.store(tile);
}

}  // namespace fusedstep::cuda
