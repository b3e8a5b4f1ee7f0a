// The named operations of a rule, exact and alike for every compiler: no fma, IEEE division and square
// root.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define FUSEDSTEP_INLINE __host__ __device__ __forceinline__
#else
#define FUSEDSTEP_INLINE inline __attribute__((always_inline))
#endif

// The same for a lambda, between its parameters and its body.
#define FUSEDSTEP_LAMBDA __attribute__((always_inline))

// Iterations of the next loop touch different elements, whatever the compiler fears about aliasing.
#if defined(__clang__)
#define FUSEDSTEP_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FUSEDSTEP_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace fusedstep {

// Unnamed, so that a translation unit built for one instruction set never lends its code to another.
namespace {

// A literal of a rule's text, in the type that is computed with: in all lanes where T is a vector.
template <class T>
FUSEDSTEP_INLINE T number(double x) {
  if constexpr (std::is_arithmetic_v<T>)
    return T(x);
  else
    return -T{} + std::decay_t<decltype(T{}[0])>(x);
}

FUSEDSTEP_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
FUSEDSTEP_INLINE double sqrt(double x) { return __builtin_sqrt(x); }

template <class T>
FUSEDSTEP_INLINE T div(T a, T b) {
  return a / b;
}

// A nan in either argument is the result; `|` keeps the loop around it free of branches.
template <class T>
FUSEDSTEP_INLINE T maximum(T a, T b) {
  return ((a > b) | (a != a)) ? a : b;
}

template <class T>
FUSEDSTEP_INLINE T minimum(T a, T b) {
  return ((a < b) | (a != a)) ? a : b;
}

// The condition is a bool, or one for each lane where T is a vector.
template <class C, class T>
FUSEDSTEP_INLINE T where(C condition, T a, T b) {
  return condition ? a : b;
}

}  // namespace
}  // namespace fusedstep
