// Kernels that test the simulator: correct ones, and the same with a planted fault.
#include <cuda_runtime.h>

#include "samples.h"

namespace samples {
namespace {

__device__ __forceinline__ float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_down_sync(~0u, x, distance);
  return x;
}

template <bool kBarrier>
__device__ float block_sum(float x) {
  float* sums = reinterpret_cast<float*>(sim::shared_memory());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  x = warp_sum(x);
  if (lane == 0) sums[warp] = x;
  if (kBarrier) __syncthreads();
  if (warp == 0) x = warp_sum(lane < int(blockDim.x / 32) ? sums[lane] : 0.0f);
  return x;
}

}  // namespace

// out[block] = the sum of the block's part of x.
template <bool kBarrier>
__global__ void __launch_bounds__(1024) block_sums(const Lists lists) {
  float sum = 0;
  for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < lists.n; k += gridDim.x * blockDim.x) {
    sum += lists.x[k];
  }
  sum = block_sum<kBarrier>(sum);
  if (threadIdx.x == 0) lists.out[blockIdx.x] = sum;
}

// Every warp reverses its numbers, through shared memory.
template <bool kBarrier>
__global__ void turn_warps(const Lists lists) {
  float* mine = reinterpret_cast<float*>(sim::shared_memory()) + threadIdx.x / 32 * 32;
  mine[threadIdx.x % 32] = lists.x[threadIdx.x];
  if (kBarrier) __syncwarp();
  lists.out[threadIdx.x] = mine[31 - threadIdx.x % 32];
}

// Every kind of exchange, one per row of out. A row is as long as the block.
__global__ void exchanges(const Lists lists) {
  const int t = threadIdx.x;
  const float x = lists.x[t];
  float* out = lists.out + t;
  const int n = blockDim.x;
  out[0 * n] = __shfl_sync(~0u, x, t * 7);
  out[1 * n] = __shfl_sync(~0u, x, 5, 8);
  out[2 * n] = __shfl_up_sync(~0u, x, 3);
  out[3 * n] = __shfl_up_sync(~0u, x, 1, 4);
  out[4 * n] = __shfl_down_sync(~0u, x, 5);
  out[5 * n] = __shfl_down_sync(~0u, x, 2, 16);
  out[6 * n] = __shfl_xor_sync(~0u, x, 9);
  out[7 * n] = float(__shfl_xor_sync(~0u, double(x), 2, 8));
  out[8 * n] = float(__ballot_sync(~0u, x > 0.5f) >> 16);
  out[9 * n] = float(__any_sync(~0u, x > 0.95f) + 2 * __all_sync(~0u, x > 0.05f));
  if (t % 2 == 0) {  // half of a warp on its own
    out[10 * n] = __shfl_xor_sync(0x55555555u, x, 4);
  } else {
    out[10 * n] = __shfl_xor_sync(0xaaaaaaaau, x, 8);
  }
}

// Stages of n elements: out[stage][k] is half the sum of its two neighbours in the stage before. Blocks
// take items by ticket, and wait for the previous stage at its counter.
template <Order kOrder>
__global__ void __launch_bounds__(64) stages(const Lists lists) {
  int* ticket = reinterpret_cast<int*>(sim::shared_memory());
  const int width = blockDim.x, items = lists.n / width;
  for (;;) {
    __syncthreads();
    if (threadIdx.x == 0) *ticket = atomicAdd(lists.counters, 1);
    __syncthreads();
    const int item = *ticket;
    if (item >= items * lists.stages) return;
    const int stage = item / items, k = item % items * width + threadIdx.x;
    const int* before = lists.counters + stage;  // counters[0] is the ticket
    if (stage > 0 && threadIdx.x == 0) {
      if (kOrder == Order::kFences || kOrder == Order::kNoFence) {
        while (atomicAdd(const_cast<int*>(before), 0) < items) {
        }
        if (kOrder == Order::kFences) __threadfence();
      } else {
        while (sim::load_acquire(before) < items) {
        }
      }
    }
    __syncthreads();
    const float* from = stage == 0 ? lists.x : lists.out + (stage - 1) * lists.n;
    const float left = from[k == 0 ? lists.n - 1 : k - 1], right = from[k == lists.n - 1 ? 0 : k + 1];
    lists.out[stage * lists.n + k] = 0.5f * (left + right);
    if (kOrder != Order::kNoBarrier) __syncthreads();
    if (threadIdx.x == 0) {
      if (kOrder == Order::kFences) __threadfence();
      if (kOrder == Order::kAcquireRelease || kOrder == Order::kNoBarrier) {
        sim::add_release(lists.counters + stage + 1, 1);
      } else {
        atomicAdd(lists.counters + stage + 1, 1);
      }
    }
  }
}

// out[thread] = its place in the order of arrival.
__global__ void arrivals(const Lists lists) {
  lists.out[blockIdx.x * blockDim.x + threadIdx.x] = float(atomicAdd(lists.counters, 1));
}

// Adds 1 under a lock, in every block.
__global__ void locked(const Lists lists) {
  if (threadIdx.x != 0) return;
  while (atomicCAS(lists.counters, 0, 1) != 0) {
  }
  __threadfence();
  lists.out[0] += 1;
  __threadfence();
  atomicExch(lists.counters, 0);
}

// Copies four numbers at a time, starting at x + shift.
__global__ void copy_vectors(const Lists lists) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= lists.n / 4) return;
  const uint4* from = reinterpret_cast<const uint4*>(lists.x + lists.shift);
  reinterpret_cast<uint4*>(lists.out)[k] = __ldg(from + k);
}

// out[k] = the number at k + shift in shared memory, which the block has not written.
__global__ void read_shared(const Lists lists) {
  const float* shared = reinterpret_cast<const float*>(sim::shared_memory());
  lists.out[threadIdx.x] = shared[int(threadIdx.x) + lists.shift];
}

__global__ void one_element(const Lists lists) { lists.out[lists.shift] = 1; }

__global__ void overflow(const Lists lists) { lists.out[0] = float(int(lists.n * 65536)); }

__global__ void all_blocks_write_one_number(const Lists lists) { lists.out[0] = float(blockIdx.x); }

__global__ void two_barriers(const Lists lists) {
  if (int(threadIdx.x) < lists.n) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void exit_before_the_barrier(const Lists lists) {
  if (int(threadIdx.x) < lists.n) return;
  __syncthreads();
}

__global__ void exit_before_the_shuffle(const Lists lists) {
  if (int(threadIdx.x) < lists.n) return;
  lists.out[threadIdx.x] = __shfl_sync(~0u, 1.0f, 31);
}

__global__ void shuffle_with(const Lists lists) {
  lists.out[threadIdx.x] = __shfl_xor_sync(lists.mask, 1.0f, 1, lists.n);
}

__global__ void barrier_or_shuffle(const Lists lists) {
  if (int(threadIdx.x) < lists.n) __syncthreads();
  __syncwarp();
}

__global__ void deep(const Lists lists) {  // more than a thread's stack
  volatile char memory[1 << 20];
  memory[lists.shift] = 1;
  lists.out[0] = memory[lists.shift];
}

// Each block waits for the one after it.
__global__ void wait_for_the_next_block(const Lists lists) {
  if (threadIdx.x == 0) {
    const int next = (blockIdx.x + 1) % gridDim.x;
    while (sim::load_acquire(lists.counters + next) == 0) {
    }
    sim::add_release(lists.counters + blockIdx.x, 1);
  }
  __syncthreads();
}

// Each block waits for the one before it. This is fine if that one is resident or has ended.
__global__ void wait_for_the_block_before(const Lists lists) {
  if (threadIdx.x == 0 && blockIdx.x > 0) {
    while (sim::load_acquire(lists.counters + blockIdx.x - 1) == 0) {
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) sim::add_release(lists.counters + blockIdx.x, 1);
}

__global__ void barriers(const Lists lists) {
  for (int k = 0; k < lists.n; ++k) __syncthreads();
}

__global__ void nothing(const Lists) {}

namespace {

struct Named {
  const char* name;
  void (*kernel)(Lists);
};

constexpr Named kKernels[] = {
    {"block_sums", block_sums<true>},
    {"block_sums without a barrier", block_sums<false>},
    {"turn_warps", turn_warps<true>},
    {"turn_warps without a barrier", turn_warps<false>},
    {"exchanges", exchanges},
    {"stages", stages<Order::kAcquireRelease>},
    {"stages with fences", stages<Order::kFences>},
    {"stages without release", stages<Order::kNoRelease>},
    {"stages without fences", stages<Order::kNoFence>},
    {"stages without a barrier", stages<Order::kNoBarrier>},
    {"arrivals", arrivals},
    {"locked", locked},
    {"copy_vectors", copy_vectors},
    {"read_shared", read_shared},
    {"one_element", one_element},
    {"overflow", overflow},
    {"all_blocks_write_one_number", all_blocks_write_one_number},
    {"two_barriers", two_barriers},
    {"exit_before_the_barrier", exit_before_the_barrier},
    {"exit_before_the_shuffle", exit_before_the_shuffle},
    {"shuffle_with", shuffle_with},
    {"barrier_or_shuffle", barrier_or_shuffle},
    {"deep", deep},
    {"wait_for_the_next_block", wait_for_the_next_block},
    {"wait_for_the_block_before", wait_for_the_block_before},
    {"barriers", barriers},
    {"nothing", nothing},
};

}  // namespace

std::string launch(const std::string& name, unsigned grid, unsigned block, size_t shared, Lists lists) {
  for (const Named& named : kKernels) {
    if (name != named.name) continue;
    void* arguments[] = {&lists};
    const cudaError_t error =
        cudaLaunchKernel(named.kernel, dim3(grid), dim3(block), arguments, shared);
    if (error != cudaGetLastError()) return "the last error is another one";
    return error == cudaSuccess
               ? ""
               : std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  }
  return "there is no such kernel";
}

std::string allow_shared(int bytes) {
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  return cudaGetErrorName(cudaFuncSetAttribute(nothing, attribute, bytes));
}

// Multiprocessors, blocks of 256 threads in each, devices, the limit of shared memory, and the launch
// bound of `stages`.
std::vector<int> device_facts() {
  std::vector<int> facts(5, -1);
  cudaDeviceGetAttribute(&facts[0], cudaDevAttrMultiProcessorCount, 0);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&facts[1], nothing, 256, 0);
  cudaGetDeviceCount(&facts[2]);
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, nothing) != cudaSuccess) return facts;
  facts[3] = attributes.maxDynamicSharedSizeBytes;
  cudaFuncGetAttributes(&attributes, stages<Order::kAcquireRelease>);
  facts[4] = attributes.maxThreadsPerBlock;
  return facts;
}

}  // namespace samples
