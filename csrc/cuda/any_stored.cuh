// Loads and stores numbers whose way of storage is known only when the kernel runs: any code of
// ../rules/layout.h. All threads of a block then take the same branch.
#pragma once

#include "stored.cuh"

namespace fusedstep::cuda {

// Calls `function` with the way of storage as a compile-time constant. Single numbers are never in
// blocks.
template <int N, class Function>
__device__ __forceinline__ void with_storage(int code, Function&& function) {
  if constexpr (N > 1)
    if (code >= kBentInt8) return function(std::integral_constant<int, kBent>());
  switch (code) {
    case kNoisyBfloat16:
      return function(std::integral_constant<int, kNoisyBfloat16>());
    case kRest16:
      return function(std::integral_constant<int, kRest16>());
    case kRest8:
      return function(std::integral_constant<int, kRest8>());
    case kCopiedFloat16:
      return function(std::integral_constant<int, kCopiedFloat16>());
    default:
      return with_dtype(code, function);
  }
}

template <class T, int N>
struct Vector<kAnyStored, T, N> : Vector<kAny, T, N> {};

template <>
struct Slot<kAnyStored, true> {
  char *base, *companion;
  int dtype;

  template <int D>
  __device__ __forceinline__ Slot<D> as() const {
    if constexpr (kHasCompanion<D>)
      return {base, companion, dtype};
    else
      return {base, dtype};
  }

  __device__ __forceinline__ bool in_blocks() const { return dtype >= kBentInt8; }
  __device__ __forceinline__ Slot from(int64_t i) const {
    const int64_t beside = in_blocks() ? i / kScaledBlock : i;
    const int bytes = dtype == kRest16 ? 2 : dtype == kRest8 ? 1 : 4;
    return {base + i * item_bytes<kAnyStored>(dtype), companion + beside * bytes, dtype};
  }
  // Without a companion its address is 0.
  __device__ __forceinline__ bool aligned() const {
    const uintptr_t beside = in_blocks() ? 0 : reinterpret_cast<uintptr_t>(companion);
    return (reinterpret_cast<uintptr_t>(base) | beside) % 16 == 0;
  }

  template <class T, int N>
  __device__ __forceinline__ void load(int64_t i, Vector<kAnyStored, T, N>& x) const {
    with_storage<N>(dtype, [&](auto known) {
      Vector<decltype(known)::value, T, N> stored;
      as<decltype(known)::value>().load(i, stored);
#pragma unroll
      for (int k = 0; k < N; ++k) x.value[k] = stored[k];
    });
  }
  template <class T, int N>
  __device__ __forceinline__ void load_each(int64_t i, Vector<kAnyStored, T, N>& x) const {
    with_storage<N>(dtype, [&](auto known) {
      Vector<decltype(known)::value, T, N> stored;
      as<decltype(known)::value>().load_each(i, stored);
#pragma unroll
      for (int k = 0; k < N; ++k) x.value[k] = stored[k];
    });
  }
  template <class T>
  __device__ __forceinline__ T load_one(int64_t i) const {
    Vector<kAnyStored, T, 1> x;
    load(i, x);
    return x[0];
  }

  // For numbers in blocks, all threads of a warp must call this together, as Slot<kBent>::store says.
  template <class T, int N, class Noise>
  __device__ __forceinline__ void store(int64_t i, const T (&x)[N], const Noise& noise,
                                        bool is_here = true, bool aligned = true) const {
    with_storage<N>(dtype, [&](auto known) {
      const auto slot = as<decltype(known)::value>();
      if constexpr (decltype(known)::value == kBent)
        slot.store(i, x, noise, is_here, aligned);
      else if (aligned)
        slot.store(i, x, noise);
      else
        slot.store_each(i, x, noise);
    });
  }
  template <class T, int N, class Noise>
  __device__ __forceinline__ void store_each(int64_t i, const T (&x)[N], const Noise& noise) const {
    store(i, x, noise, true, false);
  }
};

}  // namespace fusedstep::cuda
