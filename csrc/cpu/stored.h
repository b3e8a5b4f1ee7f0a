// How and where the numbers of a slot are stored: the storage types, their codes, pointers to them.
#pragma once

#include <utility>

#include "rounding.h"

namespace fusedstep {
namespace {

using Dtype = int64_t;  // the code of a storage type

// The storage types. In python/fusedstep/plan/storage.py is what those with a companion mean.
template <class Rounding>
struct Bfloat16Of {
  uint16_t bits;
};
using Bfloat16 = Bfloat16Of<NearestEven>;
using NoisyBfloat16 = Bfloat16Of<Noise>;
struct Float16 {
  uint16_t bits;
};
template <class R>
struct Rest {
  uint16_t bits;
  using Companion = R;
};
struct CopiedFloat16 {
  uint16_t bits;
  using Companion = float;
};

// Storage types for loops that may take numbers in any order. Two registers hold the even and the odd
// ones of their numbers, so none has to move across a register. With AVX-512 that is more than kLanes.
template <class S>
struct InPairs {
  uint16_t bits;
};
template <class R>
struct InPairs<Rest<R>> {
  uint16_t bits;
  using Companion = R;
};
template <class S>
constexpr bool kInPairs = false;
template <class S>
constexpr bool kInPairs<InPairs<S>> = true;

// How many numbers a loop over S takes at a time.
constexpr int kPairedLanes = kLanes > 2 * Lanes<float>::kWidth ? kLanes : 2 * Lanes<float>::kWidth;
template <class S>
constexpr int kLanesOf = kInPairs<S> ? kPairedLanes : kLanes;

// S for such loops.
template <class S>
struct AnyOrderOf {
  using type = S;
};
template <class Rounding>
struct AnyOrderOf<Bfloat16Of<Rounding>> {
  using type = InPairs<Bfloat16Of<Rounding>>;
};
template <class R>
struct AnyOrderOf<Rest<R>> {
  using type = InPairs<Rest<R>>;
};
template <class S>
using AnyOrder = typename AnyOrderOf<S>::type;

// The numbers of a slot: how they are stored, and where. A companion exists for some codes only.
struct Stored {
  Dtype code;
  char *at, *companion;

  // From another number on. If a scale belongs to a block of numbers, this one begins a block.
  FUSEDSTEP_INLINE Stored from(int64_t i) const {
    return {code, at + i * kItemBytes[code],
            companion + (code >= kBentInt8 ? i / kScaledBlock : i) * kCompanionBytes[code]};
  }
};

// A pointer to numbers in S: two pointers if S has a companion.
template <class S, class = void>
struct CursorOf {
  using type = S*;
  static type at(const Stored& x) { return reinterpret_cast<S*>(x.at); }
};
template <class S>
struct Beside {
  uint16_t* at;
  typename S::Companion* companion;
  FUSEDSTEP_INLINE Beside operator+(int64_t i) const { return {at + i, companion + i}; }
};
template <class S>
struct CursorOf<S, std::void_t<typename S::Companion>> {
  using type = Beside<S>;
  static type at(const Stored& x) {
    return {reinterpret_cast<uint16_t*>(x.at), reinterpret_cast<typename S::Companion*>(x.companion)};
  }
};
template <class S>
using Cursor = typename CursorOf<S>::type;
template <class S>
FUSEDSTEP_INLINE Cursor<S> cursor(const Stored& x) {
  return CursorOf<S>::at(x);
}

// The storage type of a code. Numbers that share scales have none: they are converted in blocks.
template <int code>
struct StorageOfCode;
#define FUSEDSTEP_STORAGE(code, S) \
  template <>                      \
  struct StorageOfCode<code> {     \
    using type = S;                \
  };
FUSEDSTEP_STORAGE(kFloat32, float)
FUSEDSTEP_STORAGE(kFloat64, double)
FUSEDSTEP_STORAGE(kBfloat16, Bfloat16)
FUSEDSTEP_STORAGE(kFloat16, Float16)
FUSEDSTEP_STORAGE(kNoisyBfloat16, NoisyBfloat16)
FUSEDSTEP_STORAGE(kRest16, Rest<int16_t>)
FUSEDSTEP_STORAGE(kRest8, Rest<int8_t>)
FUSEDSTEP_STORAGE(kCopiedFloat16, CopiedFloat16)
#undef FUSEDSTEP_STORAGE
template <int code>
using StorageOf = typename StorageOfCode<code>::type;

template <class T>
constexpr Dtype dtype_of() {
  return sizeof(T) == 8 ? kFloat64 : kFloat32;
}

// Making a bucket checks its codes.
inline int64_t item_bytes(Dtype dtype) { return kItemBytes[dtype]; }

// Calls `function` with a null pointer of the storage type of one of these codes.
template <int first, int... others, class Function>
FUSEDSTEP_INLINE auto with_one_of(Dtype dtype, Function&& function) {
  if constexpr (sizeof...(others) > 0)
    if (dtype != first) return with_one_of<others...>(dtype, function);
  return function(static_cast<const StorageOf<first>*>(nullptr));
}

// Of any dtype, for tensors that are neither noisy nor have a companion.
template <class Function>
FUSEDSTEP_INLINE auto with_storage(Dtype dtype, Function&& function) {
  return with_one_of<kBfloat16, kFloat16, kFloat64, kFloat32>(dtype, function);
}

// Of any storage but blocks.
template <class Function>
FUSEDSTEP_INLINE auto with_any_storage(Dtype dtype, Function&& function) {
  return with_one_of<kBfloat16, kFloat16, kFloat64, kNoisyBfloat16, kRest16, kRest8, kCopiedFloat16,
                     kFloat32>(dtype, function);
}

// Of a gradient or a parameter in its dtype. The compute type is float64 if these are stored so.
template <class T, class Function>
FUSEDSTEP_INLINE auto with_usual_storage(Dtype dtype, Function&& function) {
  if constexpr (std::is_same_v<T, double>)
    return with_one_of<kFloat64>(dtype, function);
  else
    return with_one_of<kBfloat16, kFloat16, kFloat32>(dtype, function);
}

// Of a parameter.
template <class T, class Function>
FUSEDSTEP_INLINE auto with_parameter_storage(Dtype dtype, Function&& function) {
  if constexpr (std::is_same_v<T, double>)
    return with_one_of<kFloat64>(dtype, function);
  else
    return with_one_of<kBfloat16, kFloat16, kNoisyBfloat16, kRest16, kRest8, kCopiedFloat16, kFloat32>(
        dtype, function);
}

}  // namespace
}  // namespace fusedstep
