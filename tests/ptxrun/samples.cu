// CUDA kernels that test the PTX executor, in the style of csrc/cuda: one struct by value, dynamic
// shared memory, counters between blocks. A template argument of false plants a fault.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace samples {

struct Task {
  const float* x;
  float* out;
  void* more;
  int* counters;
  int64_t n;
  double scale;
  int32_t rows;
  int16_t small;
  uint8_t flag;
  int64_t picks[5];
};

__constant__ float weights[4] = {1.0f, 0.5f, -2.0f, 4.0f};
__device__ int launches = 100;

__device__ __forceinline__ float* shared_memory() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<float*>(memory);
}

__device__ __forceinline__ int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ __forceinline__ void add_release(int* to, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

// Sums with a grid stride, then over lanes, then over warps.
template <int Width, bool Barrier>
__global__ void __launch_bounds__(256) block_sums(const Task task) {
  float* parts = shared_memory();
  float sum = 0.0f;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = threadIdx.x + int64_t(blockIdx.x) * blockDim.x; i < task.n; i += stride)
    sum += task.x[i] * float(task.scale);
  for (int lanes = Width / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes, Width);
  if (threadIdx.x % Width == 0) parts[threadIdx.x / Width] = sum;
  if (Barrier) __syncthreads();
  if (threadIdx.x >= 32) return;
  float total = 0.0f;
  for (int i = threadIdx.x; i < blockDim.x / Width; i += 32) total += parts[i];
  for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_down_sync(~0u, total, lanes);
  if (threadIdx.x == 0) task.out[blockIdx.x] = total;
}

template <class T>
__device__ T operation(int which, T a, T b) {
  switch (which) {
    case 0:
      return a + b;
    case 1:
      return a - b;
    case 2:
      return a * b;
    case 3:
      return a / b;
    case 4:
      return sqrt(a);
    case 5:
      return a * b + a;
    case 6:
      return a < b ? a : b;
    case 7:
      return T(float(a));
    case 8:
      return T(int(b));
    default:
      return T(int64_t(b));
  }
}

// Every thread takes its own branch of a switch.
template <class T>
__global__ void operations(const Task task) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= task.n) return;
  const T* more = static_cast<const T*>(task.more);
  task.counters[i] = i % 10;
  reinterpret_cast<T*>(task.out)[i] = operation<T>(i % 10, more[2 * i], more[2 * i + 1]);
}

// fma, which the source asks for by name.
__global__ void fused(const Task task) {
  const int i = threadIdx.x;
  task.out[i] = fmaf(task.x[i], task.x[i], task.scale);
  static_cast<double*>(task.more)[i] = fma(double(task.x[i]), task.scale, double(task.x[i]));
}

// Converts to 16-bit formats, one and two numbers at a time, and back to float32.
__global__ void narrowed(const Task task) {
  const int i = threadIdx.x, n = blockDim.x;
  const float a = task.x[i], b = task.x[i ^ 1];
  auto* bf = static_cast<__nv_bfloat16*>(task.more);
  auto* half = reinterpret_cast<__half*>(bf + 4 * n);
  bf[i] = __float2bfloat16_rn(a);
  half[i] = __float2half_rn(a);
  bf[n + i] = __double2bfloat16(a * task.scale);
  half[n + i] = __double2half(a * task.scale);
  reinterpret_cast<__nv_bfloat162*>(bf + 2 * n)[i] = __floats2bfloat162_rn(a, b);
  reinterpret_cast<__half2*>(half + 2 * n)[i] = __floats2half2_rn(a, b);
  const float2 one = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162*>(bf + 2 * n)[i]);
  const float2 other = __half22float2(reinterpret_cast<const __half2*>(half + 2 * n)[i]);
  const float four[] = {one.x, one.y, other.x, other.y};
  for (int k = 0; k < 4; ++k) task.out[(2 + k) * n + i] = four[k];
  task.out[i] = __bfloat162float(bf[i]);
  task.out[n + i] = __half2float(half[i]);
}

// Loads and stores 16 bytes at a time.
__global__ void vectors(const Task task) {
  const auto* from = reinterpret_cast<const uint4*>(task.x);
  auto* to = reinterpret_cast<uint4*>(task.out);
#pragma unroll 1
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < task.n / 4; i += gridDim.x * blockDim.x) {
    uint4 four = from[i];
    four.x ^= 0x80000000u;
    to[i] = four;
  }
}

// An array with an index that is only known at run time is in local memory, and so is a copy of the
// struct.
__global__ void in_local_memory(const Task task, int shift) {
  float own[8];
  for (int k = 0; k < 8; ++k) own[(k * shift) & 7] = task.x[8 * threadIdx.x + k];
  const int64_t pick = task.picks[(threadIdx.x + shift) % 5];
  task.out[threadIdx.x] = own[(threadIdx.x + pick) & 7] * weights[threadIdx.x % 4];
  if (threadIdx.x == 0) task.counters[0] = atomicAdd(&launches, 1);
}

__device__ __noinline__ float picked(const Task& task, int64_t i, float* found) {
  if (i >= task.n) return -1.0f;
  *found = task.x[i];
  return *found * task.small;
}

__global__ void calls(const Task task) {
  float first = 0.0f, second = 0.0f;
  const float a = picked(task, threadIdx.x, &first), b = picked(task, 2 * threadIdx.x, &second);
  task.out[threadIdx.x] = a + b + first * second + picked(task, task.n, &first);
}

__global__ void bits(const Task task) {
  const uint32_t a = __float_as_uint(task.x[threadIdx.x]), b = threadIdx.x;
  auto* out = static_cast<uint32_t*>(task.more) + 8 * threadIdx.x;
  out[0] = __byte_perm(a, b, 0x5410);
  out[1] = (a >> 5 & 0x7f) | b << 16;
  out[2] = __popc(a) + __clz(b) * 64;
  out[3] = __funnelshift_l(a, b, 7);
  out[4] = min(int(a), int(b)) ^ max(a, b);
  out[5] = uint64_t(a) * b >> 32;
  out[6] = a / (b + 1) + a % (b + 3);
  out[7] = task.n / int64_t(b + 1) * task.n % int64_t(a + 1);
}

__global__ void votes(const Task task) {
  const int i = threadIdx.x;
  const float x = task.x[i];
  const unsigned positive = __ballot_sync(~0u, x > 0.0f);
  volatile int* seen = task.counters;
  if (i % 32 == 0) {
    seen[4 * (i / 32)] = positive;
    seen[4 * (i / 32) + 1] = __popc(positive);
  }
  __syncwarp();
  const int outcome = __any_sync(~0u, x > 5.0f) + 2 * __all_sync(~0u, x > -5.0f);
  if (i % 32 == 31) {
    __threadfence();
    seen[4 * (i / 32) + 2] = outcome;
  }
  task.out[i] = __shfl_sync(~0u, x, i + 3, 8);
  task.out[i + blockDim.x] = __shfl_down_sync(~0u, x, 2, 8);
  task.out[i + 2 * blockDim.x] = __shfl_up_sync(~0u, x, 5);
}

// Lanes reach the exchange at different times, after loops of different lengths.
__global__ void late_lanes(const Task task) {
  float x = task.x[threadIdx.x];
#pragma unroll 1
  for (int round = 0; round < 3; ++round) {
#pragma unroll 1
    for (int k = 0; k < threadIdx.x % 5; ++k) {
      if (x > 1000.0f) break;
      x = x * 2.0f + k;
    }
    x += __shfl_xor_sync(~0u, x, 1);
  }
  task.out[threadIdx.x] = x;
}

// A chain of rows: a block takes a ticket, waits for the previous row, doubles it and adds 1.
template <bool Acquire, bool Release, bool Before, bool After>
__global__ void __launch_bounds__(128) in_turns(const Task task) {
  int* ticket = reinterpret_cast<int*>(shared_memory());
  int* done = task.counters + 1;
  while (true) {
    if (threadIdx.x == 0) *ticket = atomicAdd(task.counters, 1);
    __syncthreads();
    const int row = *ticket;
    __syncthreads();
    if (row >= task.rows) return;
    if (threadIdx.x == 0) {
      while ((Acquire ? load_acquire(done) : *const_cast<volatile int*>(done)) < row) {
      }
    }
    if (After) __syncthreads();
    float* own = task.out + int64_t(row) * blockDim.x + threadIdx.x;
    own[blockDim.x] = *own * 2.0f + 1.0f;
    if (Before) __syncthreads();
    if (threadIdx.x == 0) {
      if (Release)
        add_release(done, 1);
      else
        atomicAdd(done, 1);
    }
  }
}

template __global__ void block_sums<32, true>(const Task);
template __global__ void block_sums<8, true>(const Task);
template __global__ void block_sums<8, false>(const Task);
template __global__ void operations<float>(const Task);
template __global__ void operations<double>(const Task);
template __global__ void in_turns<true, true, true, true>(const Task);
template __global__ void in_turns<false, true, true, true>(const Task);
template __global__ void in_turns<true, false, true, true>(const Task);
template __global__ void in_turns<true, true, false, true>(const Task);
template __global__ void in_turns<true, true, true, false>(const Task);

}  // namespace samples
