// Adafactor on matrices, once their moments are known: updates parameter and momentum, and sums
// squares over all elements. A unit is a band.
#pragma once

#include "band.cuh"

namespace fusedstep::cuda {

// What turns a gradient into u: factors of a band's rows, on chip, and of a thread's columns.
template <class T, int N>
struct Factors {
  static constexpr int kRows = 1024;  // at a time
  static constexpr int kStored = sizeof(T) == 8 ? kFloat64 : kFloat32;

  const Adafactor<T> rule;
  const T mean, scale;
  const Slot<kAny> row_moments;
  const Slot<kStored> col_factors;
  T col[N];

  __device__ __forceinline__ Factors(const FactoredTensor<T>& tensor, const Band& band)
      : rule(tensor.rule()),
        mean(T(*tensor.sums(tensor.cut.mean_at + band.matrix))),
        scale(tensor.gradient_scale()),
        row_moments(tensor.template slot<kAny>(2).from(band.matrix * tensor.rows() + band.first)),
        col_factors{reinterpret_cast<char*>(tensor.col_factors(band.matrix) + band.left), kStored} {}

  static __device__ __forceinline__ T* row() { return reinterpret_cast<T*>(shared().work); }

  // All threads of the block must call this together.
  __device__ __forceinline__ void take_rows(int first, int count) {
    __syncthreads();
    for (int i = thread(); i < count; i += kThreads)
      row()[i] = rule.row_factor(row_moments.template load_one<T>(first + i), mean);
    __syncthreads();
  }

  template <class Threads>
  __device__ __forceinline__ void take_columns(const Threads& threads, int strip) {
    Vector<kStored, T, N> stored;
    stored.clear();
    const int first = threads.strip_begin(strip) + threads.column_of(0);
    if (first < threads.width) col_factors.load(first, stored);
#pragma unroll
    for (int k = 0; k < N; ++k) col[k] = stored[k];
  }

  // Whether gradients are not scaled and no factor is capped.
  __device__ __forceinline__ bool plain() const { return scale == T(1) && rule.cap == T(INFINITY); }

  template <bool kPlain>
  __device__ __forceinline__ T u(T g, T row_factor, int k) const {
    Adafactor<T> own = rule;
    if (kPlain) own.cap = T(INFINITY);
    return own.precondition(kPlain ? g : g * scale, row_factor * col[k]);
  }
};

// Vectors from kBatch rows of a thread, which are `step` elements apart; the first starts at place i.
// All are loaded before the first is written. If kWhole, all rows exist.
template <int kBatch, bool kPlain, bool kWhole, int G, class T, int N, class Use>
__device__ __forceinline__ T over_rows(const Slot<G>& g, const Factors<T, N>& factors, const Use& use,
                                       int64_t i, int64_t step, int row, int rows_apart, int rows) {
  Vector<G, T, N> own_g[kBatch];
  typename Use::template Old<N> old[kBatch];
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    if (!kWhole && row + b * rows_apart >= rows) break;
    g.load(i + b * step, own_g[b]);
    use.load(i + b * step, old[b]);
  }
  T sum = T(0);
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
    if (!kWhole && row + b * rows_apart >= rows) break;
    const T row_factor = factors.row()[row + b * rows_apart];
    T u[N];
#pragma unroll
    for (int k = 0; k < N; ++k) u[k] = factors.template u<kPlain>(own_g[b][k], row_factor, k);
    const T own = use.write(i + b * step, old[b], u);
    sum = b == 0 ? own : sum + own;
  }
  return sum;
}

// Gives every u of a band to `use`, a Writer or similar, and adds up what it returns. A thread
// loads vectors of N columns from kBatch rows at once. Loops over whole batches need no test for each
// row. In most steps scalars are plain, and the loop that knows it takes four instructions less for
// each element.
template <int G, int N, int kBatch, class T, class Use>
__device__ __forceinline__ T over_band(const FactoredTensor<T>& tensor, const Band& band,
                                       const Use& use) {
  const Slot<G> g = tensor.template slot<G>(1);
  const int64_t cols = tensor.cols(), place = band.place(tensor);
  const Arrangement<8, N, true> threads(band.width);
  const int64_t step = threads.rows * cols;
  Factors<T, N> factors(tensor, band);
  const bool plain = G != kAny && factors.plain() && use.plain();
  T sum = T(0);
#pragma unroll 1
  for (int first = 0; first < band.rows; first += factors.kRows) {
    const int rows = band.rows - first < factors.kRows ? band.rows - first : factors.kRows;
    factors.take_rows(first, rows);
#pragma unroll 1
    for (int strip = 0; strip < threads.strips; ++strip) {
      factors.take_columns(threads, strip);
      const int begin = threads.strip_begin(strip) + threads.column * N;
      if (begin >= threads.width) break;  // the next strips are right of this one
      int64_t i = place + (first + threads.row) * cols + begin;
      int row = threads.row;
      if constexpr (Use::kWholeBatches) {
        const int end = rows - (kBatch - 1) * threads.rows;  // of the first rows of whole batches
        if (plain) {
          const Use own = use.known_plain();
#pragma unroll 1
          for (; row < end; row += kBatch * threads.rows, i += kBatch * step)
            sum += over_rows<kBatch, true, true>(g, factors, own, i, step, row, threads.rows, rows);
        }
#pragma unroll 1
        for (; row < end; row += kBatch * threads.rows, i += kBatch * step)
          sum += over_rows<kBatch, false, true>(g, factors, use, i, step, row, threads.rows, rows);
        T rest = T(0);  // of rows that are too few for a batch
#pragma unroll 1
        for (; row < rows; row += threads.rows, i += step)
          rest += over_rows<1, false, true>(g, factors, use, i, step, row, threads.rows, rows);
        sum += rest;
      } else {
#pragma unroll 1
        for (; row < rows; row += kBatch * threads.rows) {
          i = place + (first + row) * cols + begin;
          sum += over_rows<kBatch, false, false>(g, factors, use, i, step, row, threads.rows, rows);
        }
      }
    }
  }
  return sum;
}

// The second read: parameter and momentum.
template <int P, int G, int M, int kBatch, class T>
__device__ __forceinline__ void update(const FactoredTensor<T>& tensor, int unit) {
  constexpr int N = G == kAny ? 1 : kVectorOf<G, T>;
  const Cut& cut = tensor.cut;
  const Band band(tensor, unit, cut.update_blocks, cut.update_rows);
  const Writer<P, M, T> writer(tensor, MatrixRow::kMomentum);
  const T squares = over_band<G, N, kBatch>(tensor, band, writer);
  if (!tensor.sums_late()) return;
  store_sum(tensor.sums(cut.late_at + unit), double(squares));
}

// The columns of a warp, of which each thread has four: a block of numbers of 8 bits.
struct BlockColumns {
  static constexpr int kColumns = kScaledBlock / kWarp;
  int width;

  __device__ __forceinline__ int strip_begin(int block) const { return block * kScaledBlock; }
  __device__ __forceinline__ int column_of(int k) const { return thread() % kWarp * kColumns + k; }
};

// The same with a momentum of 8 bits. Rows have whole blocks, and each goes to a warp.
template <int P, int G, class T>
__device__ __forceinline__ void update_blocks(const FactoredTensor<T>& tensor, int unit) {
  constexpr int N = BlockColumns::kColumns;
  const Band band(tensor, unit, tensor.cut.update_blocks, tensor.cut.update_rows);
  const int64_t cols = tensor.cols(), place = band.place(tensor);
  const Slot<G> g = tensor.template slot<G>(1);
  Writer<P, kBent, T> writer(tensor, MatrixRow::kMomentum);
  writer.aligned = writer.p.aligned() && writer.m.aligned() && g.aligned();
  Factors<T, N> factors(tensor, band);
  const BlockColumns threads{band.width};
  const int blocks = band.width / kScaledBlock, warp = thread() / kWarp;
  T squares = T(0);
#pragma unroll 1
  for (int first = 0; first < band.rows; first += factors.kRows) {
    const int rows = band.rows - first < factors.kRows ? band.rows - first : factors.kRows;
    factors.take_rows(first, rows);
#pragma unroll 1
    for (int own = warp; own < rows * blocks; own += kWarps) {
      const int row = own / blocks, block = own - row * blocks;
      const int64_t i =
          place + (first + row) * cols + threads.strip_begin(block) + threads.column_of(0);
      factors.take_columns(threads, block);
      Vector<G, T, N> own_g;
      typename Writer<P, kBent, T>::template Old<N> old;
      if (writer.aligned)
        g.load(i, own_g);
      else
        g.load_each(i, own_g);
      writer.load(i, old);
      T u[N];
#pragma unroll
      for (int k = 0; k < N; ++k) u[k] = factors.template u<false>(own_g[k], factors.row()[row], k);
      squares += writer.write(i, old, u);
    }
  }
  if (!tensor.sums_late()) return;
  store_sum(tensor.sums(tensor.cut.late_at + unit), double(squares));
}

// Takes the place of a Writer: adds up u^2.
template <class T>
struct SquaresOfU {
  template <int N>
  using Old = Nothing;
  static constexpr bool kWholeBatches = false;
  __device__ __forceinline__ bool plain() const { return false; }  // factors may be capped

  __device__ __forceinline__ void load(int64_t, Nothing&) const {}
  template <int N>
  __device__ __forceinline__ T write(int64_t, Nothing, const T (&u)[N]) const {
    T sum = u[0] * u[0];
#pragma unroll
    for (int k = 1; k < N; ++k) sum += u[k] * u[k];
    return sum;
  }
};

// The sum of u^2. It is exact if the cap changes the matrix. If not, the matrix's first unit adds
// up the sums of its columns.
template <int G, int kBatch, class T>
__device__ __forceinline__ void sum_u2(const FactoredTensor<T>& tensor, int unit) {
  constexpr int N = G == kAny ? 1 : kVectorOf<G, T>;
  const Cut& cut = tensor.cut;
  if (!(tensor.rule().cap < T(INFINITY))) return;
  const Band band(tensor, unit, cut.update_blocks, cut.update_rows);
  const T mean = T(*tensor.sums(cut.mean_at + band.matrix));
  const double* rows = tensor.sums(cut.rows_at + 2 * band.matrix * cut.row_blocks);
  const double* cols = tensor.sums(cut.least_col_at + band.matrix * cut.tiles);
  const T least_row = T(least(rows + 1, cut.row_blocks, 2)), least_col = T(least(cols, cut.tiles));
  double sum = 0.0;
  if (tensor.rule().is_capped(least_row, least_col, mean))
    sum = block_sum(double(over_band<G, N, kBatch>(tensor, band, SquaresOfU<T>())));
  else if (band.first == 0 && band.left == 0)
    sum = total(tensor.sums(cut.u_at + band.matrix * cut.tiles), cut.tiles);
  if (thread() == 0) tensor.sums(cut.late_at)[unit] = sum;
}

// The sum of p^2, if it is wanted now.
template <int P, class T>
__device__ __forceinline__ void squares(const FactoredTensor<T>& tensor, int unit) {
  constexpr int N = P == kAny || P == kAnyStored ? 1 : kVectorOf<P, T>;
  if (!tensor.sums_early()) return;
  const Band band(tensor, unit, tensor.cut.update_blocks, tensor.cut.update_rows);
  const int64_t cols = tensor.cols();
  const Slot<P> p = tensor.template slot<P>(0).from(band.place(tensor));
  const Arrangement<8, N, true> threads(band.width);
  T sum = T(0);
#pragma unroll 1
  for (int strip = 0; strip < threads.strips; ++strip) {
#pragma unroll 4
    for (int row = threads.row; row < band.rows; row += threads.rows) {
      Vector<P, T, N> x;
      threads.load(p, row * cols, strip, x);
#pragma unroll
      for (int k = 0; k < N; ++k) sum += x[k] * x[k];
    }
  }
  store_sum(tensor.sums(tensor.cut.p_at + unit), double(sum));
}

}  // namespace fusedstep::cuda
