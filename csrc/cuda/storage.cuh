// Loads and stores numbers in their dtypes: vectors of a few elements, 16 bytes at a time if a tensor
// is aligned. stored.cuh does the same for other ways of storage.
//
// If a kernel was built for a dtype, the dtype is a template argument. kAny means that it is known
// only when the kernel runs. All threads of a block then take the same branch.
#pragma once

#include <type_traits>

#include "bits.cuh"
#include "kernel_args.h"
#include "noise.cuh"

namespace fusedstep::cuda {

constexpr int kAny = -1;
constexpr int kNone = -2;       // the slot does not exist, or the unit does not use it
constexpr int kAnyStored = -3;  // as kAny, but of all ways of storage
constexpr int kBent = -4;       // kBentInt8 or kBentUint8

template <int D>
constexpr bool kHasCompanion =
    D == kRest16 || D == kRest8 || D == kCopiedFloat16 || D == kBent || D == kAnyStored;

template <int D>
constexpr bool kHas16Bits = D == kBfloat16 || D == kFloat16;

// `Bucket` has checked the dtype, so one that has neither 8 nor 4 bytes has 2.
template <int D>
__device__ __forceinline__ int item_bytes(int dtype) {
  if constexpr (D == kBent) return 1;
  if constexpr (D == kAnyStored)
    if (dtype >= kBentInt8) return 1;
  if constexpr (D != kAny && D != kAnyStored) dtype = D;
  return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2;
}

// N loaded elements of a tensor, kept as they are stored to use few registers.
template <int D, class T, int N>
struct Vector {
  static_assert(is_dtype(D) || D == kNone, "no such dtype");
  static constexpr int kBytes = N * (D == kFloat64 ? 8 : D == kFloat32 ? 4 : 2);
  static constexpr int kWords = (kBytes + 3) / 4;
  uint32_t word[kWords];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int k = 0; k < kWords; ++k) word[k] = 0;
  }

  // Loads N elements. Their address is a multiple of their size, or of 16 bytes if that is less.
  __device__ __forceinline__ void load(const char* from, int) {
    if constexpr (N == 1) {
      clear();
      load_one(0, from);
    } else {
      load_words<kBytes>(from, word);
    }
  }

  // Loads one element into a cleared vector.
  __device__ __forceinline__ void load_one(int k, const char* from) {
    if constexpr (D == kFloat64) {
      const double x = *reinterpret_cast<const double*>(from);
      memcpy(&word[2 * k], &x, 8);
    } else if constexpr (D == kFloat32) {
      word[k] = *reinterpret_cast<const uint32_t*>(from);
    } else {
      word[k / 2] |= uint32_t(*reinterpret_cast<const uint16_t*>(from)) << (k % 2 * 16);
    }
  }

  __device__ __forceinline__ T operator[](int k) const {
    if constexpr (D == kFloat64) {
      double x;
      memcpy(&x, &word[2 * k], 8);
      return T(x);
    } else if constexpr (D == kFloat32) {
      return T(from_bits(word[k]));
    } else if constexpr (D == kBfloat16) {
      return T(from_bits(k % 2 == 0 ? word[k / 2] << 16 : word[k / 2] & 0xffff0000u));
    } else {
      return T(from_half(word[k / 2] >> (k % 2 * 16)));
    }
  }
};

// Calls `function` with the dtype as a compile-time constant.
template <class Function>
__device__ __forceinline__ void with_dtype(int dtype, Function&& function) {
  switch (dtype) {
    case kFloat32:
      return function(std::integral_constant<int, kFloat32>());
    case kBfloat16:
      return function(std::integral_constant<int, kBfloat16>());
    case kFloat16:
      return function(std::integral_constant<int, kFloat16>());
    default:
      return function(std::integral_constant<int, kFloat64>());
  }
}

template <class T, int N>
struct Vector<kAny, T, N> {
  T value[N];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int k = 0; k < N; ++k) value[k] = T(0);
  }

  __device__ __forceinline__ void load(const char* from, int dtype) {
    with_dtype(dtype, [&](auto known) {
      Vector<decltype(known)::value, T, N> stored;
      stored.load(from, dtype);
#pragma unroll
      for (int k = 0; k < N; ++k) value[k] = stored[k];
    });
  }

  __device__ __forceinline__ T operator[](int k) const { return value[k]; }
};

// Loads one element.
template <int D, class T>
__device__ __forceinline__ T load_one(const char* from, int dtype) {
  T result;
  auto load = [&](auto known) {
    Vector<decltype(known)::value, T, 4> stored;
    stored.clear();
    stored.load_one(0, from);
    result = stored[0];
  };
  if constexpr (D == kAny)
    with_dtype(dtype, load);
  else
    load(std::integral_constant<int, D>());
  return result;
}

template <int D, class T>
__device__ __forceinline__ void store_one(char* to, int dtype, T x);

// Rounds N numbers and stores them. Their address is aligned as for Vector::load.
template <int D, class T, int N>
__device__ __forceinline__ void store(char* to, int dtype, const T (&x)[N]) {
  if constexpr (N == 1) {
    store_one<D>(to, dtype, x[0]);
  } else if constexpr (D == kAny) {
    with_dtype(dtype, [&](auto known) { store<decltype(known)::value, T, N>(to, dtype, x); });
  } else {
    constexpr int kBytes = Vector<D, T, N>::kBytes;
    alignas(16) uint32_t word[kBytes / 4];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if constexpr (D == kFloat64) {
        const double wide = double(x[k]);
        memcpy(&word[2 * k], &wide, 8);
      } else if constexpr (D == kFloat32) {
        word[k] = to_bits(float(x[k]));
      } else if (k % 2 == 0) {
        word[k / 2] = D == kBfloat16 ? two_bfloat16(float(x[k]), float(x[k + 1]))
                                     : two_halves(float(x[k]), float(x[k + 1]));
      }
    }
    store_words<kBytes>(to, word);
  }
}

template <int D, class T>
__device__ __forceinline__ void store_one(char* to, int dtype, T x) {
  if constexpr (D == kAny) {
    with_dtype(dtype, [&](auto known) { store_one<decltype(known)::value, T>(to, dtype, x); });
  } else if constexpr (D == kFloat64) {
    *reinterpret_cast<double*>(to) = double(x);
  } else if constexpr (D == kFloat32) {
    *reinterpret_cast<float*>(to) = float(x);
  } else {
    const uint32_t pair = D == kBfloat16 ? two_bfloat16(float(x), 0.0f) : two_halves(float(x), 0.0f);
    *reinterpret_cast<uint16_t*>(to) = uint16_t(pair);
  }
}

// A tensor, or the part of it that starts at `base`.
template <int D, bool = kHasCompanion<D>>
struct Slot;

template <int D>
struct Slot<D, false> {
  char* base;
  int dtype;

  __device__ __forceinline__ char* at(int64_t i) const { return base + i * item_bytes<D>(dtype); }
  __device__ __forceinline__ Slot from(int64_t i) const { return {at(i), dtype}; }
  // Whether the address allows 16-byte loads.
  __device__ __forceinline__ bool aligned() const {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0;
  }

  template <class T, int N>
  __device__ __forceinline__ void load(int64_t i, Vector<D, T, N>& x) const {
    x.load(at(i), dtype);
  }
  template <class T>
  __device__ __forceinline__ T load_one(int64_t i) const {
    return cuda::load_one<D, T>(at(i), dtype);
  }
  // Loads numbers that may lie anywhere.
  template <class T, int N>
  __device__ __forceinline__ void load_each(int64_t i, Vector<D, T, N>& x) const {
    x.clear();
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if constexpr (D == kAny)
        x.value[k] = load_one<T>(i + k);
      else
        x.load_one(k, at(i + k));
    }
  }

  // Only one way of storage needs the noise.
  template <class T, int N, class Noise = NoNoise>
  __device__ __forceinline__ void store(int64_t i, const T (&x)[N], const Noise& noise = {}) const {
    if constexpr (D == kNoisyBfloat16)
      store_noisy(at(i), x, noise);
    else
      cuda::store<D>(at(i), dtype, x);
  }
  template <class T>
  __device__ __forceinline__ void store_one(int64_t i, T x) const {
    cuda::store_one<D>(at(i), dtype, x);
  }
  template <class T, int N, class Noise = NoNoise>
  __device__ __forceinline__ void store_each(int64_t i, const T (&x)[N],
                                             const Noise& noise = {}) const {
    if constexpr (D == kNoisyBfloat16) {
      store_each_noisy(at(i), x, noise);
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k) store_one(i + k, x[k]);
    }
  }
};

// Rounds a second moment to its stored value, which the step uses as well.
template <class T>
__device__ __forceinline__ T round_to_storage(int dtype, T x) {
  if (dtype == kBfloat16) return T(from_bits(two_bfloat16(float(x), 0.0f) << 16));
  if (dtype == kFloat16) return T(from_half(two_halves(float(x), 0.0f)));
  return dtype == kFloat32 ? T(float(x)) : x;
}

// A second moment that a thread loads, changes and stores. It is stored in float32 or, if D has 16
// bits, in D. It is kept as it is stored, so that no thread waits for it before its first use.
template <int D, class T>
struct Moment {
  uint32_t bits = 0;

  static __device__ __forceinline__ bool is_wide(int dtype) {
    return D == kFloat32 || dtype == kFloat32;
  }
  __device__ __forceinline__ void load(const char* from, int dtype) {
    bits = is_wide(dtype) ? *reinterpret_cast<const uint32_t*>(from)
                          : *reinterpret_cast<const uint16_t*>(from);
  }
  __device__ __forceinline__ T value(int dtype) const {
    if constexpr (D == kFloat16) return is_wide(dtype) ? from_bits(bits) : from_half(bits);
    return from_bits(is_wide(dtype) ? bits : bits << 16);
  }
  // Stores a new moment if `here`. Returns its stored value, which the step uses as well.
  static __device__ __forceinline__ T store(char* to, int dtype, T x, bool here) {
    if (is_wide(dtype)) {
      if (here) *reinterpret_cast<float*>(to) = x;
      return x;
    }
    const uint32_t narrow = D == kFloat16 ? two_halves(x, 0.0f) : two_bfloat16(x, 0.0f);
    if (here) *reinterpret_cast<uint16_t*>(to) = uint16_t(narrow);
    return D == kFloat16 ? from_half(narrow) : from_bits(narrow << 16);
  }
};

template <class T>
struct Moment<kAny, T> {
  T number = T(0);

  __device__ __forceinline__ void load(const char* from, int dtype) {
    number = load_one<kAny, T>(from, dtype);
  }
  __device__ __forceinline__ T value(int) const { return number; }
  static __device__ __forceinline__ T store(char* to, int dtype, T x, bool here) {
    const T moment = round_to_storage(dtype, x);
    if (here) store_one<kAny>(to, dtype, moment);
    return moment;
  }
};

}  // namespace fusedstep::cuda
