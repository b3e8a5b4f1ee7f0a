// The kernel for the norm of the gradients: one block adds up the squares of a part of one gradient.
#pragma once

#include <type_traits>

#include "rule.cuh"

namespace fusedstep::cuda {

// A square may be too large or too small for float32, and float64 is slow on some GPUs. So numbers are
// scaled by a power of two, which the largest of them chooses, squared and added up in float32; what
// a thread has loaded at once makes one number in float64. Up to 64 squares are below 2^127. A number
// below 2^-113 (1e-34) loses digits, one below 2^-125 counts as 0.
constexpr float kLarge = 0x1p10f;
constexpr float kOfLarge = 0x1p-70f, kOfSmall = 0x1p50f;
constexpr double kBackLarge = 0x1p140, kBackSmall = 0x1p-100;

template <int G, int N, int kCount>
__device__ __forceinline__ double sum_of_squares(const Vector<G, float, N> (&x)[kCount]) {
  static_assert(N * kCount <= 64);
  float most = 0.0f;  // fmaxf leaves out nan, whose square is nan at any scale
#pragma unroll
  for (int a = 0; a < kCount; ++a)
#pragma unroll
    for (int e = 0; e < N; ++e) most = fmaxf(most, fabsf(x[a][e]));
  const bool large = most > kLarge;
  const float scale = large ? kOfLarge : kOfSmall;
  float sum = 0.0f;
#pragma unroll
  for (int a = 0; a < kCount; ++a)
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float scaled = x[a][e] * scale;
      sum += scaled * scaled;
    }
  return double(sum) * (large ? kBackLarge : kBackSmall);
}

template <int G, int N, int kCount>
__device__ __forceinline__ double sum_of_squares(const Vector<G, double, N> (&x)[kCount]) {
  double sum = 0.0;
#pragma unroll
  for (int a = 0; a < kCount; ++a)
#pragma unroll
    for (int e = 0; e < N; ++e) sum += x[a][e] * x[a][e];
  return sum;
}

template <int G>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_squares(const __grid_constant__ KernelArgs args) {
  using T = std::conditional_t<G == kFloat64, double, float>;
  constexpr int kVector = G == kFloat64 ? 2 : G == kFloat32 ? 4 : 8;  // 16 bytes
  constexpr int kStride = kThreads * kVector;
  constexpr int kAhead = 4;  // vectors that a thread loads at once

  const int32_t* entry = args.entries + 2 * int64_t(blockIdx.x);
  const int64_t tensor = entry[0], first = int64_t(entry[1]) * kGradientUnit;
  const int64_t* table_row = args.table + tensor * args.fields;
  double sum = 0.0;
  if (has_gradient(table_row)) {
    const Slot<G> g = slot_of<G>(args, table_row, ElementwiseRow::kG).from(first);
    const int64_t left = args.elements[tensor] - first;
    const int end = left < kGradientUnit ? int(left) : kGradientUnit;
    const int end_of_vectors = g.aligned() ? end / kVector * kVector : 0;
    for (int i = thread() * kVector; i < end_of_vectors; i += kAhead * kStride) {
      Vector<G, T, kVector> x[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        x[a].clear();
        if (i + a * kStride < end_of_vectors) g.load(i + a * kStride, x[a]);
      }
      sum += sum_of_squares(x);
    }
    // The last few elements, or all elements of an unaligned gradient.
    for (int i = end_of_vectors + thread(); i < end; i += kThreads) {
      Vector<G, T, 1> x[1];
      g.load(i, x[0]);
      sum += sum_of_squares(x);
    }
  }
  store_sum(args.sums + blockIdx.x, sum);
}

}  // namespace fusedstep::cuda
