// Numbers side by side, in as many vector registers as they need: kLanes, or those of a pair.
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
template <class T, int n = kLanes>
struct Lanes {
  static constexpr int kWidth = kRegisterBytes / sizeof(T);  // of a part
  static constexpr int kParts = n / kWidth;
  using Part = Vector<T, kWidth>;
  Part part[kParts];

  Lanes() = default;
  FUSEDSTEP_INLINE explicit Lanes(T x) {
    for (Part& own : part) own = x - Part{};
  }
  FUSEDSTEP_INLINE T operator[](int64_t k) const { return part[k / kWidth][k % kWidth]; }
};

// A copy of the whole struct would go through memory, in pieces.
template <int n = kLanes, class T>
FUSEDSTEP_INLINE Lanes<T, n> get_lanes(const T* from) {
  Lanes<T, n> x;
#pragma GCC unroll 16
  for (int k = 0; k < x.kParts; ++k) x.part[k] = get<typename Lanes<T>::Part>(from + k * x.kWidth);
  return x;
}

template <class T, int n>
FUSEDSTEP_INLINE void put_lanes(T* to, const Lanes<T, n>& x) {
#pragma GCC unroll 16
  for (int k = 0; k < x.kParts; ++k) put(to + k * x.kWidth, x.part[k]);
}

// Applies an operation to the parts of one or more Lanes.
template <class Operation, class T, int n, class... Others>
FUSEDSTEP_INLINE auto by_parts(Operation&& operation, const Lanes<T, n>& x, const Others&... others) {
  using Part = decltype(operation(x.part[0], others.part[0]...));
  Lanes<std::decay_t<decltype(Part{}[0])>, n> out;
#pragma GCC unroll 16
  for (int k = 0; k < x.kParts; ++k) out.part[k] = operation(x.part[k], others.part[k]...);
  return out;
}

#define FUSEDSTEP_OPERATOR(op)                                                     \
  template <class T, int n>                                                        \
  FUSEDSTEP_INLINE auto operator op(const Lanes<T, n>& a, const Lanes<T, n>& b) {  \
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

template <class T, int n>
FUSEDSTEP_INLINE Lanes<T, n> operator-(const Lanes<T, n>& x) {
  return by_parts([](auto part) FUSEDSTEP_LAMBDA { return -part; }, x);
}

template <class T, int n>
FUSEDSTEP_INLINE Lanes<T, n>& operator+=(Lanes<T, n>& a, const Lanes<T, n>& b) {
  return a = a + b;
}

template <class C, class T, int n>
FUSEDSTEP_INLINE Lanes<T, n> where(const Lanes<C, n>& condition, const Lanes<T, n>& a,
                                   const Lanes<T, n>& b) {
  return by_parts([](auto c, auto x, auto y) FUSEDSTEP_LAMBDA { return c ? x : y; }, condition, a, b);
}

// nan if either argument is nan.
template <class T, int n>
FUSEDSTEP_INLINE Lanes<T, n> maximum(const Lanes<T, n>& a, const Lanes<T, n>& b) {
  return by_parts([](auto x, auto y) FUSEDSTEP_LAMBDA { return (x > y) | (x != x) ? x : y; }, a, b);
}

template <class T, int n>
FUSEDSTEP_INLINE Lanes<T, n> minimum(const Lanes<T, n>& a, const Lanes<T, n>& b) {
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

template <class T, int n>
FUSEDSTEP_INLINE Lanes<T, n> sqrt(const Lanes<T, n>& x) {
  return by_parts([](auto part) FUSEDSTEP_LAMBDA { return sqrt_part(part); }, x);
}

// The same numbers in another type.
template <class To, class From, int n>
FUSEDSTEP_INLINE Lanes<To, n> cast_lanes(const Lanes<From, n>& x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else {
    From from[n];
    To to[n];
    put_lanes(from, x);
    for (int k = 0; k < n; ++k) to[k] = To(from[k]);
    return get_lanes<n>(to);
  }
}

// The numbers at these places of two registers. GCC before 12 takes the places as a vector.
template <int... places, class V>
FUSEDSTEP_INLINE V shuffle(V a, V b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, places...);
#else
  using Place = std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, Vector<Place, sizeof...(places)>{places...});
#endif
}

// Lanes in pairs: of each two registers, the first has the numbers of even places, the second those
// of odd places. These functions put lanes in the order of their places, and back.
template <class T, int n>
FUSEDSTEP_INLINE Lanes<T, n> from_pairs(const Lanes<T, n>& x) {
  Lanes<T, n> out;
#pragma GCC unroll 8
  for (int k = 0; k < x.kParts; k += 2) {
    const auto a = x.part[k], b = x.part[k + 1];
    if constexpr (Lanes<T>::kWidth == 16) {
      out.part[k] = shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a, b);
      out.part[k + 1] = shuffle<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a, b);
    } else if constexpr (Lanes<T>::kWidth == 8) {
      out.part[k] = shuffle<0, 8, 1, 9, 2, 10, 3, 11>(a, b);
      out.part[k + 1] = shuffle<4, 12, 5, 13, 6, 14, 7, 15>(a, b);
    } else {
      out.part[k] = shuffle<0, 4, 1, 5>(a, b);
      out.part[k + 1] = shuffle<2, 6, 3, 7>(a, b);
    }
  }
  return out;
}

template <class T, int n>
FUSEDSTEP_INLINE Lanes<T, n> to_pairs(const Lanes<T, n>& x) {
  Lanes<T, n> out;
#pragma GCC unroll 8
  for (int k = 0; k < x.kParts; k += 2) {
    const auto a = x.part[k], b = x.part[k + 1];
    if constexpr (Lanes<T>::kWidth == 16) {
      out.part[k] = shuffle<0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30>(a, b);
      out.part[k + 1] = shuffle<1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31>(a, b);
    } else if constexpr (Lanes<T>::kWidth == 8) {
      out.part[k] = shuffle<0, 2, 4, 6, 8, 10, 12, 14>(a, b);
      out.part[k + 1] = shuffle<1, 3, 5, 7, 9, 11, 13, 15>(a, b);
    } else {
      out.part[k] = shuffle<0, 2, 4, 6>(a, b);
      out.part[k + 1] = shuffle<1, 3, 5, 7>(a, b);
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

// Adds n numbers of a row to the sums of its lanes, kLanes after kLanes. If two registers hold 2 kLanes
// numbers in pairs, the first halves of both come first: even places in one half of the sums, odd ones
// in the other.
template <class T, int n>
FUSEDSTEP_INLINE void add_to_lanes(Lanes<T>& sum, const Lanes<T, n>& x) {
  if constexpr (n == kLanes) {
    sum += x;
  } else {
    static_assert(n == 2 * kLanes && Lanes<T>::kWidth == kLanes);
    const auto a = x.part[0], b = x.part[1];
    const auto first = shuffle<0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23>(a, b);
    const auto second = shuffle<8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31>(a, b);
    sum.part[0] = (sum.part[0] + first) + second;
  }
}

// The fold of kLanes numbers. If they are in pairs, the sums of even and of odd places come last.
template <class T, bool pairs = false>
FUSEDSTEP_INLINE T fold_lanes(Lanes<T> x) {
#pragma GCC unroll 8
  for (int half = Lanes<T>::kParts / 2; half > pairs; half /= 2)
    for (int k = 0; k < half; ++k) x.part[k] = x.part[k] + x.part[k + half];
  constexpr int kWidth = Lanes<T>::kWidth;
  if constexpr (!pairs) {
    return fold_vector<T, kWidth>(x.part[0]);
  } else if constexpr (Lanes<T>::kParts > 1) {
    return fold_vector<T, kWidth>(x.part[0]) + fold_vector<T, kWidth>(x.part[1]);
  } else {
    Vector<T, kWidth / 2> half[2];
    put(half, x.part[0]);
    return fold_vector<T, kWidth / 2>(half[0]) + fold_vector<T, kWidth / 2>(half[1]);
  }
}

}  // namespace
}  // namespace fusedstep
