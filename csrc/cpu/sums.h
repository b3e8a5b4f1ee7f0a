// Sums along rows and down columns, in the order that python/fusedstep/rules/layout.py defines.
#pragma once

#include <algorithm>
#include <type_traits>

#include "tile.h"

namespace fusedstep {
namespace {

// kLanes numbers side by side. With narrower registers the compiler uses several.
template <class T>
struct LanesOf {
  typedef T Vector __attribute__((vector_size(kLanes * sizeof(T))));
};
template <class T>
using Lanes = typename LanesOf<T>::Vector;

// The storage types as C++ types, for loops that widen in registers.
struct Bfloat16 {
  uint16_t bits;
};
using Float16 = _Float16;

template <class V>
FUSEDSTEP_INLINE V get(const void* from) {
  V x;
  std::memcpy(&x, from, sizeof(V));
  return x;
}

template <class V>
FUSEDSTEP_INLINE void put(void* to, V x) {
  std::memcpy(to, &x, sizeof(V));
}

// Calls `function` with a null pointer of the storage type of `dtype`.
template <class Function>
FUSEDSTEP_INLINE auto with_storage(Dtype dtype, Function&& function) {
  switch (dtype) {
    case kBfloat16:
      return function(static_cast<const Bfloat16*>(nullptr));
    case kFloat16:
      return function(static_cast<const Float16*>(nullptr));
    case kFloat64:
      return function(static_cast<const double*>(nullptr));
    case kFloat32:
      return function(static_cast<const float*>(nullptr));
  }
  __builtin_unreachable();
}

// One stored number, or kLanes of them, as numbers of the compute type.
template <class T, class S>
FUSEDSTEP_INLINE T widen(const S* from) {
  if constexpr (std::is_same_v<S, Bfloat16>)
    return T(from_bfloat16(from->bits));
  else
    return T(*from);
}

template <class T, class S>
FUSEDSTEP_INLINE Lanes<T> widen_lanes(const S* from) {
  if constexpr (std::is_same_v<S, Bfloat16>) {
#if defined(__AVX512F__)  // the compiler's own conversion splits both halves
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
    const auto bits = __builtin_convertvector(get<Lanes<uint16_t>>(from), Lanes<uint32_t>) << 16;
#endif
    return __builtin_convertvector(__builtin_bit_cast(Lanes<float>, bits), Lanes<T>);
  } else if constexpr (std::is_same_v<S, Float16>) {
    T wide[kLanes];
    widen_half(reinterpret_cast<const char*>(from), kLanes, wide);
    return get<Lanes<T>>(wide);
  } else {
    return __builtin_convertvector(get<Lanes<S>>(from), Lanes<T>);
  }
}

// A vector load must wait for single stores to the same memory. For matrices with few columns, this
// wait takes most of the time. Masked instructions avoid it.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define FUSEDSTEP_MASKED 1
FUSEDSTEP_INLINE __mmask16 first_lanes(int64_t n) { return __mmask16((1u << n) - 1); }
#endif

// The first n of kLanes numbers. The others are zeros, which change no sum.
template <class T, class S>
FUSEDSTEP_INLINE Lanes<T> widen_partial(const S* from, int64_t n) {
#ifdef FUSEDSTEP_MASKED
  if constexpr (std::is_same_v<S, float>) {
    const __m512 x = _mm512_maskz_loadu_ps(first_lanes(n), from);
    return __builtin_convertvector(__builtin_bit_cast(Lanes<float>, x), Lanes<T>);
  } else if constexpr (sizeof(S) == 2) {
    S whole[kLanes];
    put(whole, _mm256_maskz_loadu_epi16(first_lanes(n), from));
    return widen_lanes<T>(whole);
  }
#endif
  T padded[kLanes] = {};
  for (int64_t k = 0; k < n; ++k) padded[k] = widen<T>(from + k);
  return get<Lanes<T>>(padded);
}

template <class T, class S>
FUSEDSTEP_INLINE void narrow_lanes(S* to, Lanes<T> x) {
  if constexpr (std::is_same_v<S, Bfloat16>) {
    // to_bfloat16 for all lanes.
    const Lanes<float> f = __builtin_convertvector(x, Lanes<float>);
    const Lanes<uint32_t> bits = __builtin_bit_cast(Lanes<uint32_t>, f);
    Lanes<uint32_t> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = f != f ? Lanes<uint32_t>{} + 0x7fc0 : rounded;
    put(to, __builtin_convertvector(rounded, Lanes<uint16_t>));
  } else if constexpr (std::is_same_v<S, Float16>) {
    T wide[kLanes];
    put(wide, x);
    narrow_half(wide, kLanes, reinterpret_cast<char*>(to));
  } else {
    put(to, __builtin_convertvector(x, Lanes<S>));
  }
}

template <class T, class S>
FUSEDSTEP_INLINE void narrow_partial(S* to, Lanes<T> x, int64_t n) {
  S narrow[kLanes];
  narrow_lanes<T>(narrow, x);
#ifdef FUSEDSTEP_MASKED
  if constexpr (std::is_same_v<S, float>)
    return _mm512_mask_storeu_ps(to, first_lanes(n), get<__m512>(narrow));
  else if constexpr (sizeof(S) == 2)
    return _mm256_mask_storeu_epi16(to, first_lanes(n), get<__m256i>(narrow));
#endif
  for (int64_t k = 0; k < n; ++k) to[k] = narrow[k];
}

// The fold of kGroup numbers `at(k)`, from the inside out, to keep few in registers at once.
template <int First = 0, int Step = 1, class At>
FUSEDSTEP_INLINE auto fold_group(At&& at) {
  if constexpr (Step == kGroup)
    return at(First);
  else
    return fold_group<First, 2 * Step>(at) + fold_group<First + Step, 2 * Step>(at);
}

// The fold of kLanes numbers: adds the halves of a vector until one lane is left.
template <class T>
FUSEDSTEP_INLINE T fold_lanes(Lanes<T> x) {
  static_assert(kLanes == 16, "the halves below are for sixteen lanes");
  auto a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  auto b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  auto c = __builtin_shufflevector(b, b, 0, 1) + __builtin_shufflevector(b, b, 2, 3);
  return c[0] + c[1];
}

// The sums of squares of `Rows` rows of m columns. `numbers(r, j, n)` returns n <= kLanes numbers
// of row r from column j on. For full lanes, n is a compile-time constant.
template <class T, int Rows, class Numbers>
FUSEDSTEP_INLINE void row_square_sums(int64_t m, Numbers&& numbers, double (&total)[Rows]) {
  for (double& sum : total) sum = 0.0;
  for (int64_t tile = 0; tile < m; tile += kTile) {
    const int64_t end = std::min<int64_t>(tile + kTile, m);
    Lanes<T> sum[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) sum[r] = Lanes<T>{};
    int64_t j = tile;
    for (; j + kLanes <= end; j += kLanes) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Lanes<T> x = numbers(r, j, std::integral_constant<int64_t, kLanes>());
        sum[r] += x * x;
      }
    }
    if (j < end) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Lanes<T> x = numbers(r, j, end - j);
        sum[r] += x * x;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) total[r] += double(fold_lanes<T>(sum[r]));
  }
}

// The sum of at most a tile of numbers.
template <class T>
inline T tile_sum(const T* x, int64_t n) {
  Lanes<T> sum = {};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) sum += get<Lanes<T>>(x + j);
  if (j < n) sum += widen_partial<T>(x + j, n - j);
  return fold_lanes<T>(sum);
}

// The sum of n stored numbers.
template <class T>
inline double stored_sum(Dtype dtype, const char* from, int64_t n) {
  T buffer[kTile];
  double total = 0.0;
  for (int64_t i = 0; i < n; i += kTile) {
    const int64_t width = std::min<int64_t>(kTile, n - i);
    const T* x = load(dtype, from + i * item_bytes(dtype), width, T(1), buffer);
    total += double(tile_sum(x, width));
  }
  return total;
}

inline double sum_in_order(const double* x, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; ++i) total += x[i];
  return total;
}

}  // namespace
}  // namespace fusedstep
