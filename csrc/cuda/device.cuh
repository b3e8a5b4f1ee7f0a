// The GPU features that kernels use: shared memory, sums over a block, the order of kernels.
//
// tests/simcuda provides the same for g++, so the same kernels run on a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace fusedstep::cuda {

constexpr int kThreads = 512;  // of a block; elementwise kernels have half as many
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }

// What a block of a factored kernel keeps on chip. The current unit of work uses `work` for column
// sums, row factors or a row of numbers of 16 bits.
struct Shared {
  double reduced[kWarps];
  alignas(16) char work[32768];
};

#if defined(__CUDACC__)

__device__ __forceinline__ Shared& shared() {
  extern __shared__ uint4 memory[];
  return *reinterpret_cast<Shared*>(memory);
}

// The pointer for an address in a table. It tells the compiler that this is global memory, so that
// accesses need no check for shared memory.
template <class T>
__device__ __forceinline__ T* pointer(int64_t address) {
  return static_cast<T*>(__cvta_global_to_generic(static_cast<size_t>(address)));
}

// Kernels of a step follow one another closely: each may be scheduled when all blocks of the one
// before have started, and then waits until that one has ended and its writes are visible.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Makes the compiler keep a number in a register. Without it, a number that is cheap to make from
// others that are still there may be made again at each use.
__device__ __forceinline__ void keep(float& x) { asm volatile("" : "+f"(x)); }
__device__ __forceinline__ void keep(double& x) { asm volatile("" : "+d"(x)); }
__device__ __forceinline__ void keep(int& x) { asm volatile("" : "+r"(x)); }

// Tells the compiler what a branch of the caller has made sure of.
__device__ __forceinline__ void assume(bool known) { __builtin_assume(known); }

#else

inline void assume(bool) {}
inline void let_next_kernel_start() {}
inline void wait_for_kernel_before() {}
template <class T>
void keep(T&) {}
inline Shared& shared() { return *reinterpret_cast<Shared*>(sim::shared_memory()); }
template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

#endif

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// Combines the numbers of all threads of a block, always in the same order. Every thread gets the
// result.
template <class Combine>
__device__ __forceinline__ double over_block(double x, Combine combine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x = combine(x, __shfl_xor_sync(kAllLanes, x, offset));
  double* reduced = shared().reduced;
  if (thread() % kWarp == 0) reduced[thread() / kWarp] = x;
  __syncthreads();
  x = reduced[0];
  for (int warp = 1; warp < kWarps; ++warp) x = combine(x, reduced[warp]);
  __syncthreads();  // the next reduction reuses this memory
  return x;
}

__device__ __forceinline__ double block_sum(double x) {
  return over_block(x, [](double a, double b) { return a + b; });
}

// Ignores nan, which is not less than anything.
__device__ __forceinline__ double block_least(double x) {
  return over_block(x, [](double a, double b) { return b < a ? b : a; });
}

// Stores the sum of x over the threads of the block.
__device__ __forceinline__ void store_sum(double* to, double x) {
  const double sum = block_sum(x);
  if (thread() == 0) *to = sum;
}

// The sum of `count` numbers in memory, the same in every thread of the block.
__device__ __forceinline__ double total(const double* first, int64_t count, int stride = 1) {
  double sum = 0.0;
  for (int64_t i = thread(); i < count; i += kThreads) sum += first[i * stride];
  return block_sum(sum);
}

__device__ __forceinline__ double least(const double* first, int64_t count, int stride = 1) {
  double smallest = INFINITY;
  for (int64_t i = thread(); i < count; i += kThreads)
    smallest = first[i * stride] < smallest ? first[i * stride] : smallest;
  return block_least(smallest);
}

}  // namespace fusedstep::cuda
