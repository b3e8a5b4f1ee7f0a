// Loads and stores a short part of a tensor as numbers of the compute type.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "../rules/layout.h"

namespace fusedstep {
namespace {

using Dtype = int64_t;

template <class T>
constexpr Dtype dtype_of() {
  return sizeof(T) == 8 ? kFloat64 : kFloat32;
}

// The dtype is known: making a bucket checks it.
inline int64_t item_bytes(Dtype dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

inline float from_bfloat16(uint16_t x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }

// Rounds to nearest, ties to even, in integers. Every nan becomes the same quiet nan.
inline uint16_t to_bfloat16(float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x != x ? 0x7fc0 : uint16_t(rounded);
}

template <class T>
void widen_half(const char* from, int64_t n, T* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; sizeof(T) == 4 && i + 8 <= n; i += 8) {
    __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i));
    _mm256_storeu_ps(reinterpret_cast<float*>(to) + i, _mm256_cvtph_ps(x));
  }
#endif
  for (; i < n; ++i) {
    _Float16 x;
    std::memcpy(&x, from + 2 * i, 2);
    to[i] = T(x);
  }
}

template <class T>
void narrow_half(const T* from, int64_t n, char* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; sizeof(T) == 4 && i + 8 <= n; i += 8) {
    __m256 x = _mm256_loadu_ps(reinterpret_cast<const float*>(from) + i);
    __m128i half = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i), half);
  }
#endif
  for (; i < n; ++i) {
    _Float16 x = _Float16(float(from[i]));
    std::memcpy(to + 2 * i, &x, 2);
  }
}

template <class T, class Stored>
void convert(const char* from, int64_t n, T* to) {
  const Stored* x = reinterpret_cast<const Stored*>(from);
  FUSEDSTEP_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) to[i] = T(x[i]);
}

// Whether the numbers can be used in place: they have the compute type and need no scale.
template <class T>
FUSEDSTEP_INLINE bool in_place(Dtype dtype, T scale) {
  return dtype == dtype_of<T>() && scale == T(1);
}

template <class T>
__attribute__((noinline)) const T* load_copy(Dtype dtype, const char* from, int64_t n, T scale,
                                             T* buffer) {
  if (dtype == kFloat32) convert<T, float>(from, n, buffer);
  if (dtype == kFloat64) convert<T, double>(from, n, buffer);
  if (dtype == kFloat16) widen_half(from, n, buffer);
  if (dtype == kBfloat16) {
    const uint16_t* x = reinterpret_cast<const uint16_t*>(from);
    FUSEDSTEP_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) buffer[i] = from_bfloat16(x[i]);
  }
  if (scale != T(1)) {
    FUSEDSTEP_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) buffer[i] *= scale;
  }
  return buffer;
}

template <class T>
__attribute__((noinline)) void store_copy(Dtype dtype, char* to, int64_t n, const T* x) {
  if (dtype == kFloat16) return narrow_half(x, n, to);
  if (dtype == kBfloat16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(to);
    FUSEDSTEP_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) out[i] = to_bfloat16(float(x[i]));
  } else if (dtype == kFloat32) {
    float* out = reinterpret_cast<float*>(to);
    FUSEDSTEP_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) out[i] = float(x[i]);
  } else {
    double* out = reinterpret_cast<double*>(to);
    FUSEDSTEP_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) out[i] = double(x[i]);
  }
}

// The n elements at `from`, times `scale`: in place if nothing changes, else in `buffer`.
template <class T>
FUSEDSTEP_INLINE const T* load(Dtype dtype, const char* from, int64_t n, T scale, T* buffer) {
  if (in_place(dtype, scale)) return reinterpret_cast<const T*>(from);
  return load_copy(dtype, from, n, scale, buffer);
}

template <class T>
FUSEDSTEP_INLINE T* load(Dtype dtype, char* from, int64_t n, T* buffer) {
  return const_cast<T*>(load<T>(dtype, from, n, T(1), buffer));
}

// Rounds `x`, which came from `load`, and stores it back in the tensor.
template <class T>
FUSEDSTEP_INLINE void store(Dtype dtype, char* to, int64_t n, const T* x) {
  if (reinterpret_cast<const char*>(x) != to) store_copy(dtype, to, n, x);
}

// Stores `x` and rounds it to the stored value: a step uses factored moments as they are stored.
template <class T>
FUSEDSTEP_INLINE void round_to_storage(Dtype dtype, char* to, int64_t n, T* x) {
  store(dtype, to, n, x);
  if (dtype != dtype_of<T>()) load(dtype, to, n, x);
}

}  // namespace
}  // namespace fusedstep
