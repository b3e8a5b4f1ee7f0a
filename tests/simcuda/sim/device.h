// CUDA's keywords and intrinsics for kernels. They call the machine, in machine.h.
//
// All code that reads or writes the kernels' memory is in this header and not in the machine, because
// only the kernels' sources are compiled with the sanitizers.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vectors.h"

#define SIMCUDA 1

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
// Puts threads / 32 bytes of nops before the kernel's entry. launch.cpp counts them to learn the bound.
#define __launch_bounds__(threads, ...) \
  __attribute__((patchable_function_entry(((threads) + 31) / 32, ((threads) + 31) / 32)))
#define __shared__ \
  _Pragma("GCC error \"the simulator knows dynamic shared memory only: sim::shared_memory()\"")

namespace sim {

// The indices of the running thread. The machine writes them when it switches threads.
struct Position {
  uint3 thread, block;
  dim3 block_shape, grid_shape;
  int lane;
  char* shared;
};
extern Position position;

enum class Exchange : uint8_t { kSync, kShuffle, kBallot };

// Implemented by the machine. `file` and `line` identify a barrier.
void sync_block(const char* file, int line);
uint64_t exchange(Exchange what, unsigned mask, uint64_t value, int source, const char* file, int line);
void fence();
void before_atomic(const void* address);
void after_atomic(const void* address, bool changed);
void looked();  // after a read of a counter, or an atomic that changed nothing
void added();   // after an addition to a counter
[[noreturn]] void fail_width(int width, const char* file, int line);

inline int lane() { return position.lane; }

// The block's dynamic shared memory. It is full of NaN until the block writes to it.
inline char* shared_memory() { return position.shared; }

inline int load_acquire(const int* counter) {
  const int value = __atomic_load_n(counter, __ATOMIC_ACQUIRE);
  looked();
  return value;
}

inline void add_release(int* counter, int value) {
  __atomic_fetch_add(counter, value, __ATOMIC_RELEASE);
  added();
}

// An atomic operation, relaxed as CUDA's are.
template <class T, class Next>
T update(T* address, Next next) {
  static_assert(std::is_integral_v<T> && sizeof(T) >= 4);
  before_atomic(address);
  const T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  const T now = next(old);
  __atomic_exchange_n(address, now, __ATOMIC_RELAXED);
  after_atomic(address, now != old);
  return old;
}

template <class To, class From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<From>);
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

template <class T>
T shuffle(unsigned mask, T value, int source, const char* file, int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle takes 4 or 8 bytes");
  using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return bits<T>(Word(exchange(Exchange::kShuffle, mask, bits<Word>(value), source, file, line)));
}

inline int first_of_segment(int width, const char* file, int line) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail_width(width, file, line);
  return lane() & ~(width - 1);
}

}  // namespace sim

#define threadIdx (sim::position.thread)
#define blockIdx (sim::position.block)
#define blockDim (sim::position.block_shape)
#define gridDim (sim::position.grid_shape)
constexpr int warpSize = 32;

// The last two arguments of barriers and exchanges are the place of the call.
#define SIMCUDA_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMCUDA_HERE) { sim::sync_block(file, line); }

inline void __syncwarp(unsigned mask = ~0u, SIMCUDA_HERE) {
  sim::exchange(sim::Exchange::kSync, mask, 0, 0, file, line);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMCUDA_HERE) {
  const int first = sim::first_of_segment(width, file, line);
  return sim::shuffle(mask, value, first + (source & (width - 1)), file, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMCUDA_HERE) {
  const int first = sim::first_of_segment(width, file, line), source = sim::lane() - int(delta);
  return sim::shuffle(mask, value, source < first ? sim::lane() : source, file, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMCUDA_HERE) {
  const int end = sim::first_of_segment(width, file, line) + width;
  const int source = sim::lane() + int(delta);
  return sim::shuffle(mask, value, source >= end ? sim::lane() : source, file, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, SIMCUDA_HERE) {
  const int end = sim::first_of_segment(width, file, line) + width, source = sim::lane() ^ with;
  return sim::shuffle(mask, value, source >= end ? sim::lane() : source, file, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMCUDA_HERE) {
  return unsigned(sim::exchange(sim::Exchange::kBallot, mask, predicate != 0, 0, file, line));
}
inline int __any_sync(unsigned mask, int predicate, SIMCUDA_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMCUDA_HERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}
#undef SIMCUDA_HERE

inline void __threadfence() { sim::fence(); }
inline void __threadfence_block() {}  // not modelled: within a block only barriers order memory

// Integers only: a float sum depends on the order of arrival, so it would differ from run to run.
#define SIMCUDA_ATOMICS(T)                                                                           \
  inline T atomicAdd(T* at, T value) {                                                               \
    return sim::update(at,                                                                           \
                       [=](T old) { return static_cast<T>(old + std::make_unsigned_t<T>(value)); }); \
  }                                                                                                  \
  inline T atomicExch(T* at, T value) {                                                              \
    return sim::update(at, [=](T) { return value; });                                                \
  }                                                                                                  \
  inline T atomicCAS(T* at, T compare, T value) {                                                    \
    return sim::update(at, [=](T old) { return old == compare ? value : old; });                     \
  }
SIMCUDA_ATOMICS(int)
SIMCUDA_ATOMICS(unsigned)
SIMCUDA_ATOMICS(unsigned long long)
#undef SIMCUDA_ATOMICS

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __float_as_int(float x) { return sim::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return sim::bits<unsigned>(x); }
inline float __int_as_float(int x) { return sim::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return sim::bits<float>(x); }
inline long long __double_as_longlong(double x) { return sim::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return sim::bits<double>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
// Four of the eight bytes of a and b: each selector has four bits.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  unsigned chosen = 0;
  for (int k = 0; k < 4; ++k) chosen |= unsigned(bytes >> 8 * (selectors >> 4 * k & 7) & 0xff) << 8 * k;
  return chosen;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }

#define SIMCUDA_LEAST_AND_MOST(T)                     \
  constexpr T min(T a, T b) { return b < a ? b : a; } \
  constexpr T max(T a, T b) { return a < b ? b : a; }
SIMCUDA_LEAST_AND_MOST(int)
SIMCUDA_LEAST_AND_MOST(unsigned)
SIMCUDA_LEAST_AND_MOST(long)
SIMCUDA_LEAST_AND_MOST(unsigned long)
SIMCUDA_LEAST_AND_MOST(long long)
SIMCUDA_LEAST_AND_MOST(unsigned long long)
#undef SIMCUDA_LEAST_AND_MOST
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
