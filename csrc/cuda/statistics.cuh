// Adafactor's first read of a matrix. Rows stay on chip: their sums give the row moments, and with
// these the column sums.
//
// A block of 512 threads has a multiprocessor to itself, and 128 registers a thread. A column takes two
// of them for its sums. With 8 or 16 columns, a thread also keeps the squares of a batch of rows (32
// registers) and the next batch as it loads (16). About 40 registers are left for all else. With 24 or
// 32 columns, the sums take 64 and the next row 16, so squares cannot stay in registers. The row stays
// in shared memory as it is stored (16,384 numbers of 16 bits are 32 KB), and its squares are made
// twice. Meanwhile the next row loads. That is 16 to 32 KB, where a multiprocessor of an H200 needs 26
// for full speed; but reading all rows once more would take longer.
#pragma once

#include "columns.cuh"

namespace fusedstep::cuda {

// What a unit does with the moments of its rows.
enum class Rows {
  kMake,   // has whole rows and makes the moments
  kSum,    // has a chunk of the rows and leaves its sums of g^2
  kKnown,  // has a chunk of the rows and reads the moments, made from those sums
};

// Sums along rows that several threads share, `Batch` rows at a time. A thread gets the sum of one
// row, number `own`; other threads get the same sum.
template <int Batch, class T>
struct RowSums {
  static constexpr int kLanes = kWarp / Batch;  // lanes of a warp for the same row
  static constexpr int kBuffer = Batch * kWarps;

  int per_row, own, lane, warps;
  int from, to;   // places of warps' sums: the first that this lane reads, the one that it writes
  T* const sums;  // of warps, on chip

  __device__ __forceinline__ RowSums(int per_row, char* room)
      : per_row(per_row),
        own(thread() % Batch),
        lane(thread() % kWarp),
        warps(per_row / kWarp),
        sums(reinterpret_cast<T*>(room)) {
    const int warp = thread() / kWarp, first = warp & -warps;
    from = own * kWarps + first + lane / Batch;
    to = own * kWarps + warp;
  }

  // Each step halves the rows that a lane adds up: it gives half of them away and keeps the other.
  template <int kRows>
  __device__ __forceinline__ void scatter(T (&part)[Batch]) const {
    if constexpr (kRows > 1) {
      constexpr int kOffset = Batch / kRows;
      const bool odd = own & kOffset;
#pragma unroll
      for (int b = 0; b < kRows / 2; ++b) {
        const T even_row = part[2 * b], odd_row = part[2 * b + 1];
        part[b] =
            (odd ? odd_row : even_row) + __shfl_xor_sync(kAllLanes, odd ? even_row : odd_row, kOffset);
      }
      scatter<kRows / 2>(part);
    }
  }

  __device__ __forceinline__ T operator()(T (&part)[Batch]) {
    scatter<Batch>(part);
    T sum = part[0];
#pragma unroll
    for (int offset = kWarp / 2; offset >= Batch; offset /= 2) {
      if (offset >= per_row) continue;
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
    if (per_row <= kWarp) {
      __syncwarp();  // as __syncthreads() below: all lanes have loaded what one of them will store
      return sum;
    }
    if (lane < Batch) sums[to] = sum;
    __syncthreads();
    // Each lane adds up the sums of a few warps. Then the lanes of a row add up theirs.
    const int i = lane / Batch;
    sum = i < warps ? sums[from] : T(0);
    if (kLanes < kWarps && i + kLanes < warps) sum += sums[from + kLanes];
#pragma unroll
    for (int offset = Batch; offset < kWarp; offset *= 2)
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    // The next batch's sums go to another buffer: other warps may still read these.
    from ^= kBuffer;
    to ^= kBuffer;
    return sum;
  }
};

constexpr int kNoRow = 1 << 30;  // past every band

// Where a thread leaves 16 bytes of a row on chip. It alone reads them again, so no thread waits for
// another.
__device__ __forceinline__ char* staged(int strip) {
  return shared().work + (strip * kThreads + thread()) * 16;
}

// G is the dtype of the gradient. A thread has 8 * V columns, or 4 in float64.
template <int G, int V, Rows kRows, int kBatches, class T>
__device__ __forceinline__ void statistics(const FactoredTensor<T>& tensor, int unit) {
  constexpr int N = kVectorOf<G, T>, kColumns = sizeof(T) == 8 ? 4 : 8 * V;
  constexpr int kStrips = kColumns / N;
  // Rows of a thread at a time: more if elements are small. The next rows load in the meantime.
  constexpr int kWanted = (kHas16Bits<G> ? 2 : 1) * kBatches, kBatch = kWanted > V ? kWanted / V : 1;
  static_assert(kBatch <= kLeastPerRow && (kBatch & (kBatch - 1)) == 0, "a thread for each row");
  constexpr bool kAhead = G != kAny;
  // A thread with so many columns has no registers for the squares of a row beside its sums down the
  // columns. It makes them twice: for the sum of the row, and when that is known.
  constexpr bool kTwice = V > 2;
  static_assert(!kTwice || (kHas16Bits<G> && kStrips * kThreads * 16 <= sizeof(Shared::work)));
  const Cut& cut = tensor.cut;
  const Band band(tensor, unit, cut.row_blocks, cut.unit_rows);
  const int64_t cols = tensor.cols();
  const Arrangement<kColumns, N, G != kAny> threads(band.width);
  const int step = kBatch * threads.rows;
  const int64_t first_row = band.matrix * tensor.rows() + band.first;
  const Adafactor<T> rule = tensor.rule();
  const T scale = tensor.gradient_scale();
  const bool as_it_is = scale * scale == T(1);  // only squares are used, so the sign is not
  const T per_column = div(T(1), T(cols));
  static_assert(2 * sizeof(float) * kWarps <= sizeof(Shared::reduced), "sums of two rows");
  RowSums<kBatch, T> row_sums(threads.per_row,
                              kTwice ? reinterpret_cast<char*>(shared().reduced) : shared().work);
  // A thread computes the moment of one row of a batch. Other threads compute the same one; only
  // one stores it.
  const int own = row_sums.own * threads.rows + threads.row;
  const bool stores = threads.column < kBatch;
  T* const sums_of_chunks =
      tensor.partials() + (kRows == Rows::kSum ? (first_row + own) * cut.chunks + band.chunk : 0);

  // Addresses move from row to row by addition, which is cheaper than a product for each load. They
  // are numbers, because nvcc 13.0 does not come to an end with pointers that a loop moves.
  const int column = kAhead ? threads.column_of(0) : 0;
  const Slot<G> g = tensor.template slot<G>(1).from(band.place(tensor) + threads.row * cols + column);
  int64_t next_row = reinterpret_cast<int64_t>(g.base);
  const int64_t row_bytes = threads.rows * cols * item_bytes<G>(g.dtype);
  const Slot<kAny> moments = tensor.template slot<kAny>(2).from(first_row + own);
  int64_t moment_at = reinterpret_cast<int64_t>(moments.base);
  const int moment_bytes = step * item_bytes<kAny>(moments.dtype);

  // The first row of the thread's vectors. Those that are right of the band have none.
  int first_of[kStrips];
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip)
    first_of[strip] = threads.strip_begin(strip) + column < band.width ? threads.row : kNoRow;

  Vector<G, T, N> next[kBatch][kStrips];
  Moment<G, T> next_moment;
  // Loads a batch and this thread's moment. `left` rows are left, and `moment` is where the
  // thread's one is.
  auto fetch = [&](int left, int64_t moment) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const Slot<G> row{pointer<char>(next_row), g.dtype};
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        if (b * threads.rows + first_of[strip] >= left)
          next[b][strip].clear();
        else if constexpr (kAhead)
          row.load(threads.strip_begin(strip), next[b][strip]);
        else
          threads.load(row, 0, strip, next[b][strip]);
      }
      next_row += row_bytes;
    }
    if (kRows != Rows::kSum && own < left) next_moment.load(pointer<char>(moment), moments.dtype);
  };

  // Calls `take` with each of a thread's columns and the scaled number there in the row on chip.
  auto over_staged = [&](auto take) {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      Vector<G, T, N> own;
      if constexpr (kTwice) load_words<16>(staged(strip), own.word);
#pragma unroll
      for (int k = 0; k < N; ++k) take(strip * N + k, as_it_is ? own[k] : own[k] * scale);
    }
  };

  T s[kColumns] = {}, h[kColumns] = {};
  if (kAhead) fetch(band.rows, moment_at);
#pragma unroll 1
  for (int left = band.rows; left > 0; left -= step) {
    if (!kAhead) fetch(left, moment_at);
    T square[kTwice ? 1 : kBatch][kColumns], part[kBatch] = {};
    const T old = next_moment.value(moments.dtype);
    if constexpr (kTwice) {
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) store_words<16>(staged(strip), next[0][strip].word);
      if (left > step) fetch(left - step, moment_at + moment_bytes);
      over_staged([&](int c, T x) { part[0] = c == 0 ? x * x : part[0] + x * x; });
    } else {
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) square[b][c] = next[b][c / N][c % N];
      if (!as_it_is) {
#pragma unroll
        for (int b = 0; b < kBatch; ++b)
#pragma unroll
          for (int c = 0; c < kColumns; ++c) square[b][c] *= scale;
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          square[b][c] *= square[b][c];
          keep(square[b][c]);
          part[b] = c == 0 ? square[b][0] : part[b] + square[b][c];
        }
      }
      if (kAhead && left > step) fetch(left - step, moment_at + moment_bytes);
    }

    const bool is_row = own < left;
    T moment = old;
    if constexpr (kRows != Rows::kKnown) {
      const T sum = row_sums(part);
      if constexpr (kRows == Rows::kSum) {
        if (stores && is_row) sums_of_chunks[int64_t(band.rows - left) * cut.chunks] = sum;
        continue;
      }
      moment = Moment<G, T>::store(pointer<char>(moment_at), moments.dtype,
                                   rule.second_moment(old, sum * per_column), stores && is_row);
    }
    moment_at += moment_bytes;
    // Rows past the end add nothing: their squares are zero.
    const T own_inverse = rule.inverse(is_row ? moment : T(1));
    T inverse[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) inverse[b] = __shfl_sync(kAllLanes, own_inverse, b, kBatch);
    if constexpr (kTwice) {
      over_staged([&](int c, T x) {
        s[c] += x * x;
        h[c] = multiply_add(x * x, inverse[0], h[c]);
      });
    } else {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        T all = square[0][c], weighted = square[0][c] * inverse[0];
#pragma unroll
        for (int b = 1; b < kBatch; ++b) {
          all += square[b][c];
          weighted = multiply_add(square[b][c], inverse[b], weighted);
        }
        s[c] += all;
        h[c] += weighted;
      }
    }
  }
  if constexpr (kRows == Rows::kSum) return;

  // With 8 columns the loop needs the registers of the band, which is then looked up again.
  if (V == 1) keep(unit);
  const Band own_band = V == 1 ? Band(tensor, unit, cut.row_blocks, cut.unit_rows) : band;
  const int64_t at = own_band.matrix * cut.row_blocks + own_band.block;
  __syncthreads();  // other threads stored the moments that are read below
  double sum_of_rows = 0.0;
  if constexpr (kRows == Rows::kMake) {
    const int64_t first = own_band.matrix * tensor.rows() + own_band.first;
    const Slot<kAny> all = tensor.template slot<kAny>(2).from(first);
    double least_row = INFINITY;
#pragma unroll 1
    for (int row = thread(); row < own_band.rows; row += kThreads) {
      const double moment = double(all.template load_one<T>(row));
      sum_of_rows += moment;
      if (moment < least_row) least_row = moment;
    }
    sum_of_rows = block_sum(sum_of_rows);
    least_row = block_least(least_row);
    if (thread() == 0) {
      tensor.sums(cut.rows_at)[2 * at] = sum_of_rows;
      tensor.sums(cut.rows_at)[2 * at + 1] = least_row;
    }
  }
  // A unit with all rows of its matrix finishes the columns. Other units leave their sums.
  const bool flat = cut.row_blocks == 1;
  T mean = T(0);
  if (flat)
    mean = kRows == Rows::kMake ? tensor.rule().floored_mean(T(sum_of_rows / double(tensor.rows())))
                                : tensor.mean_of_rows(own_band.matrix);
  Columns<T> columns(tensor, own_band.matrix, mean);
  T* partials = tensor.partials() + at * 2 * cols + own_band.left;
  sums_down_columns(threads, s, h, [&](int col, T s_sum, T h_sum) {
    if (flat) {
      columns.finish(own_band.left + col, div(s_sum, T(tensor.rows())), h_sum);
    } else {
      partials[col] = s_sum;
      partials[cols + col] = h_sum;
    }
  });
  if (flat) columns.store(own_band.chunk);
}

}  // namespace fusedstep::cuda
