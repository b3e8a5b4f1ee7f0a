// Bands: the rows and columns of a matrix in one unit, and how a block's threads share them.
#pragma once

#include "factored_tensor.cuh"

namespace fusedstep::cuda {

// Columns of a thread's vector: 16 bytes of the kernel's dtype. With kAny there are no vectors; the
// number then suits the registers.
template <int D, class T>
constexpr int kVectorOf =
    kHas16Bits<D> || D == kRest16 || D == kRest8 || (D == kAny && sizeof(T) == 4) ? 8 : 4;

struct Band {
  int64_t matrix;  // of the batch
  int64_t block;   // of rows
  int chunk;       // of columns
  int64_t first;   // row
  int64_t left;    // column
  int rows, width;

  // A matrix is cut into `blocks` blocks of `height` rows.
  template <class T>
  __device__ __forceinline__ Band(const FactoredTensor<T>& tensor, int unit, int64_t blocks,
                                  int64_t height) {
    const int chunks = int(tensor.cut.chunks), in_column = int(blocks);
    chunk = unit % chunks;
    block = unit / chunks % in_column;
    matrix = unit / chunks / in_column;
    first = block * height;
    left = chunk * tensor.cut.chunk_cols;
    const int64_t rows_left = tensor.rows() - first, cols_left = tensor.cols() - left;
    rows = int(height < rows_left ? height : rows_left);
    width = int(tensor.cut.chunk_cols < cols_left ? tensor.cut.chunk_cols : cols_left);
  }

  // The offset of the band's first element in the tensor.
  template <class T>
  __device__ __forceinline__ int64_t place(const FactoredTensor<T>& tensor) const {
    return (matrix * tensor.rows() + first) * tensor.cols() + left;
  }
};

constexpr int kLeastPerRow = 4;  // threads: one for each of up to four rows

// The threads of a block: `per_row` threads side by side, `rows` rows at a time. A thread has
// `Columns` columns of a row, or more if the row is longer, in strips of N. If the tensor is
// aligned, a thread's columns of a strip are a vector. If not, neighbouring threads have
// neighbouring columns.
template <int Columns, int N, bool kAligned>
struct Arrangement {
  int per_row = kLeastPerRow;
  int rows, strips, row, column, width;

  __device__ __forceinline__ explicit Arrangement(int width) : width(width) {
    while (per_row < kThreads && per_row * Columns < width) per_row *= 2;
    rows = kThreads / per_row;
    strips = (width + per_row * N - 1) / (per_row * N);
    row = thread() / per_row;
    column = thread() % per_row;
  }

  __device__ __forceinline__ int strip_begin(int strip) const { return strip * per_row * N; }
  // The place of a thread's k-th column in a strip.
  __device__ __forceinline__ int column_of(int k) const {
    return kAligned ? column * N + k : k * per_row + column;
  }

  // Loads a thread's elements of a strip. The row starts at `from`; zeros fill up missing elements.
  template <int D, class T>
  __device__ __forceinline__ void load(const Slot<D>& slot, int64_t from, int strip,
                                       Vector<D, T, N>& x) const {
    const int begin = strip_begin(strip);
    if constexpr (kAligned) {
      if (begin + column * N < width)
        slot.load(from + begin + column * N, x);
      else
        x.clear();
    } else {
      with_dtype(slot.dtype, [&](auto known) {
        const Slot<decltype(known)::value> of_dtype{slot.base, slot.dtype};
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const int col = begin + column_of(k);
          x.value[k] = col < width ? of_dtype.template load_one<T>(from + col) : T(0);
        }
      });
    }
  }
};

}  // namespace fusedstep::cuda
