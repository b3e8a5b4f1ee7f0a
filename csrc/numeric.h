// The named operations of rule texts. They are exact and the same for every compiler: no fma, IEEE
// division and square root.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FUSEDSTEP_INLINE __host__ __device__ __forceinline__
#else
#define FUSEDSTEP_INLINE inline __attribute__((always_inline))
#endif

// The same for a lambda; put it between parameters and body.
#define FUSEDSTEP_LAMBDA __attribute__((always_inline))

// Promises that iterations of the next loop touch different elements.
#if defined(__clang__)
#define FUSEDSTEP_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FUSEDSTEP_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace fusedstep {

// Unnamed: the linker must not share this code between files built for different instruction sets.
namespace {

// A literal of a rule text in the compute type.
template <class T>
FUSEDSTEP_INLINE T number(double x) {
  return T(x);
}

FUSEDSTEP_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
FUSEDSTEP_INLINE double sqrt(double x) { return __builtin_sqrt(x); }

template <class T>
FUSEDSTEP_INLINE T div(T a, T b) {
  return a / b;
}

// nan if either argument is nan. `|` avoids a branch in the loop.
template <class T>
FUSEDSTEP_INLINE T maximum(T a, T b) {
  return ((a > b) | (a != a)) ? a : b;
}

template <class T>
FUSEDSTEP_INLINE T minimum(T a, T b) {
  return ((a < b) | (a != a)) ? a : b;
}

template <class C, class T>
FUSEDSTEP_INLINE T where(C condition, T a, T b) {
  return condition ? a : b;
}

}  // namespace
}  // namespace fusedstep
