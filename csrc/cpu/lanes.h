// kLanes numbers side by side, in as many vector registers as they need.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../rules/layout.h"

namespace fusedstep {
namespace {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

// `n` numbers in one register or in a part of one.
template <class T, int n>
struct VectorOf {
  typedef T type __attribute__((vector_size(n * sizeof(T))));
};
template <class T, int n>
using Vector = typename VectorOf<T, n>::type;

// A copy by memcpy would at times go through the stack.
template <class V>
FUSEDSTEP_INLINE V get(const void* from) {
  typedef V Unaligned __attribute__((aligned(1), may_alias));
  return *static_cast<const Unaligned*>(from);
}

template <class V>
FUSEDSTEP_INLINE void put(void* to, const V& x) {
  typedef V Unaligned __attribute__((aligned(1), may_alias));
  *static_cast<Unaligned*>(to) = x;
}

// One vector type of all lanes would be shorter. But GCC takes apart comparisons and choices of
// vectors that are wider than a register, number by number.
template <class T>
struct Lanes {
  static constexpr int kWidth = kRegisterBytes / sizeof(T);  // of a part
  static constexpr int kParts = kLanes / kWidth;
  using Part = Vector<T, kWidth>;
  Part part[kParts];

  Lanes() = default;
  FUSEDSTEP_INLINE explicit Lanes(T x) {
    for (Part& own : part) own = x - Part{};
  }
  FUSEDSTEP_INLINE T operator[](int64_t k) const { return part[k / kWidth][k % kWidth]; }
};

// A copy of the whole struct would go through memory, in pieces.
template <class T>
FUSEDSTEP_INLINE Lanes<T> get_lanes(const T* from) {
  Lanes<T> x;
#pragma GCC unroll 16
  for (int k = 0; k < x.kParts; ++k) x.part[k] = get<typename Lanes<T>::Part>(from + k * x.kWidth);
  return x;
}

template <class T>
FUSEDSTEP_INLINE void put_lanes(T* to, const Lanes<T>& x) {
#pragma GCC unroll 16
  for (int k = 0; k < x.kParts; ++k) put(to + k * x.kWidth, x.part[k]);
}

// Applies an operation to the parts of one or more Lanes.
template <class Operation, class T, class... Others>
FUSEDSTEP_INLINE auto by_parts(Operation&& operation, const Lanes<T>& x, const Others&... others) {
  using Part = decltype(operation(x.part[0], others.part[0]...));
  Lanes<std::decay_t<decltype(Part{}[0])>> out;
#pragma GCC unroll 16
  for (int k = 0; k < Lanes<T>::kParts; ++k) out.part[k] = operation(x.part[k], others.part[k]...);
  return out;
}

#define FUSEDSTEP_OPERATOR(op)                                                     \
  template <class T>                                                               \
  FUSEDSTEP_INLINE auto operator op(const Lanes<T>& a, const Lanes<T>& b) {        \
    return by_parts([](auto x, auto y) FUSEDSTEP_LAMBDA { return x op y; }, a, b); \
  }
FUSEDSTEP_OPERATOR(+)
FUSEDSTEP_OPERATOR(-)
FUSEDSTEP_OPERATOR(*)
FUSEDSTEP_OPERATOR(/)
FUSEDSTEP_OPERATOR(<)
FUSEDSTEP_OPERATOR(>)
FUSEDSTEP_OPERATOR(<=)
FUSEDSTEP_OPERATOR(>=)
FUSEDSTEP_OPERATOR(==)
FUSEDSTEP_OPERATOR(!=)
#undef FUSEDSTEP_OPERATOR

template <class T>
FUSEDSTEP_INLINE Lanes<T> operator-(const Lanes<T>& x) {
  return by_parts([](auto part) FUSEDSTEP_LAMBDA { return -part; }, x);
}

template <class T>
FUSEDSTEP_INLINE Lanes<T>& operator+=(Lanes<T>& a, const Lanes<T>& b) {
  return a = a + b;
}

template <class C, class T>
FUSEDSTEP_INLINE Lanes<T> where(const Lanes<C>& condition, const Lanes<T>& a, const Lanes<T>& b) {
  return by_parts([](auto c, auto x, auto y) FUSEDSTEP_LAMBDA { return c ? x : y; }, condition, a, b);
}

// nan if either argument is nan.
template <class T>
FUSEDSTEP_INLINE Lanes<T> maximum(const Lanes<T>& a, const Lanes<T>& b) {
  return by_parts([](auto x, auto y) FUSEDSTEP_LAMBDA { return (x > y) | (x != x) ? x : y; }, a, b);
}

template <class T>
FUSEDSTEP_INLINE Lanes<T> minimum(const Lanes<T>& a, const Lanes<T>& b) {
  return by_parts([](auto x, auto y) FUSEDSTEP_LAMBDA { return (x < y) | (x != x) ? x : y; }, a, b);
}

// Compilers have no root of a vector of any width.
template <class Part>
FUSEDSTEP_INLINE Part sqrt_part(Part x) {
  constexpr bool single = sizeof(x[0]) == 4;
#if defined(__AVX512F__)
  if constexpr (single)
    return Part(_mm512_maskz_sqrt_ps(0xffff, __m512(x)));
  else
    return Part(_mm512_maskz_sqrt_pd(0xff, __m512d(x)));
#elif defined(__AVX2__)
  if constexpr (single)
    return Part(_mm256_sqrt_ps(__m256(x)));
  else
    return Part(_mm256_sqrt_pd(__m256d(x)));
#elif defined(__SSE2__)
  if constexpr (single)
    return Part(_mm_sqrt_ps(__m128(x)));
  else
    return Part(_mm_sqrt_pd(__m128d(x)));
#elif defined(__aarch64__)
  if constexpr (single)
    return Part(vsqrtq_f32(float32x4_t(x)));
  else
    return Part(vsqrtq_f64(float64x2_t(x)));
#else
  for (size_t k = 0; k < sizeof(x) / sizeof(x[0]); ++k)
    x[k] = single ? __builtin_sqrtf(x[k]) : __builtin_sqrt(x[k]);
  return x;
#endif
}

template <class T>
FUSEDSTEP_INLINE Lanes<T> sqrt(const Lanes<T>& x) {
  return by_parts([](auto part) FUSEDSTEP_LAMBDA { return sqrt_part(part); }, x);
}

// The same numbers in another type.
template <class To, class From>
FUSEDSTEP_INLINE Lanes<To> cast_lanes(const Lanes<From>& x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else {
    From from[kLanes];
    To to[kLanes];
    put_lanes(from, x);
    for (int k = 0; k < kLanes; ++k) to[k] = To(from[k]);
    return get_lanes(to);
  }
}

// Lanes in pairs: of each two registers, the first has the numbers of even places, the second those
// of odd places. These functions put lanes in the order of their places, and back.
template <class T>
FUSEDSTEP_INLINE Lanes<T> from_pairs(const Lanes<T>& x) {
  Lanes<T> out;
#pragma GCC unroll 8
  for (int k = 0; k < Lanes<T>::kParts; k += 2) {
    const auto a = x.part[k], b = x.part[k + 1];
    if constexpr (Lanes<T>::kWidth == 8) {
      out.part[k] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      out.part[k + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    } else {
      out.part[k] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      out.part[k + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    }
  }
  return out;
}

template <class T>
FUSEDSTEP_INLINE Lanes<T> to_pairs(const Lanes<T>& x) {
  Lanes<T> out;
#pragma GCC unroll 8
  for (int k = 0; k < Lanes<T>::kParts; k += 2) {
    const auto a = x.part[k], b = x.part[k + 1];
    if constexpr (Lanes<T>::kWidth == 8) {
      out.part[k] = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
      out.part[k + 1] = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
    } else {
      out.part[k] = __builtin_shufflevector(a, b, 0, 2, 4, 6);
      out.part[k + 1] = __builtin_shufflevector(a, b, 1, 3, 5, 7);
    }
  }
  return out;
}

// The fold of n numbers in a vector: adds its halves until one number is left.
template <class T, int n>
FUSEDSTEP_INLINE T fold_vector(Vector<T, n> x) {
  if constexpr (n * sizeof(T) > 16) {
    Vector<T, n / 2> half[2];
    put(half, x);
    return fold_vector<T, n / 2>(half[0] + half[1]);
  } else if constexpr (n == 4) {
    return (x[0] + x[2]) + (x[1] + x[3]);
  } else {
    static_assert(n == 2);
    return x[0] + x[1];
  }
}

// The fold of kLanes numbers. If they are in pairs, the last two numbers come from two registers.
template <class T, bool pairs = false>
FUSEDSTEP_INLINE T fold_lanes(Lanes<T> x) {
#pragma GCC unroll 8
  for (int half = Lanes<T>::kParts / 2; half > pairs; half /= 2)
    for (int k = 0; k < half; ++k) x.part[k] = x.part[k] + x.part[k + half];
  const T first = fold_vector<T, Lanes<T>::kWidth>(x.part[0]);
  if constexpr (pairs) return first + fold_vector<T, Lanes<T>::kWidth>(x.part[1]);
  return first;
}

}  // namespace
}  // namespace fusedstep
