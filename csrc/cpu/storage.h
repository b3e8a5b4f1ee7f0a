// How numbers of the compute type T are stored in tensors: the storage types and all conversions, which
// run in registers.
#pragma once

#include "rounding.h"

namespace fusedstep {
namespace {

using Dtype = int64_t;

// The storage types, and the code of each.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
// Bfloat16 for loops that may take numbers in any order. Two registers hold the even and the odd ones
// of their numbers, so none has to move across a register.
struct Bfloat16Pairs {
  uint16_t bits;
};
template <class S>
constexpr bool kInPairs = std::is_same_v<S, Bfloat16Pairs>;

// S for such loops. With one register of kLanes, pairs gain nothing.
template <class S>
using AnyOrder =
    std::conditional_t<std::is_same_v<S, Bfloat16> && (Lanes<float>::kParts > 1), Bfloat16Pairs, S>;

template <int code>
using StorageOf =
    std::conditional_t<code == kFloat32, float,
                       std::conditional_t<code == kFloat64, double,
                                          std::conditional_t<code == kBfloat16, Bfloat16, Float16>>>;

template <class T>
constexpr Dtype dtype_of() {
  return sizeof(T) == 8 ? kFloat64 : kFloat32;
}

// Making a bucket checks its dtypes.
inline int64_t item_bytes(Dtype dtype) { return kItemBytes[dtype]; }

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

// The same for a parameter, of which the compute type follows: float64 if it is stored so.
template <class T, class Function>
FUSEDSTEP_INLINE auto with_parameter_storage(Dtype dtype, Function&& function) {
  if constexpr (std::is_same_v<T, double>) {
    return function(static_cast<const double*>(nullptr));
  } else {
    if (dtype == kBfloat16) return function(static_cast<const Bfloat16*>(nullptr));
    if (dtype == kFloat16) return function(static_cast<const Float16*>(nullptr));
    return function(static_cast<const float*>(nullptr));
  }
}

#if defined(__AVX512F__)
// GCC 12 warns of what the forms without a mask leave undefined.
constexpr __mmask16 kAllLanes = 0xffff;
#endif

// All conversions of one storage type. A part is one register of the compute type.
template <class S>
struct Storage {
  FUSEDSTEP_INLINE static typename Lanes<S>::Part widen_one(const S* from, int k) {
    return get<typename Lanes<S>::Part>(from + k * Lanes<S>::kWidth);
  }
  template <class T>
  FUSEDSTEP_INLINE static Lanes<T> widen(const S* from) {
    return cast_lanes<T>(get_lanes(from));
  }
  template <class Rounding, class T>
  FUSEDSTEP_INLINE static void narrow(S* to, const Lanes<T>& x, const Place&) {
    put_lanes(to, cast_lanes<S>(x));
  }
};

// Sixteen bits, by way of float32.
template <class S>
struct ShortStorage {
  using Floats = Lanes<float>;
  static constexpr int kWidth = Floats::kWidth;
  using Words = Vector<uint16_t, kWidth>;

  FUSEDSTEP_INLINE static Floats::Part widen_one(const S* from, int k) {
    return Storage<S>::widen_part(get<Words>(from + k * kWidth));
  }
  template <class T>
  FUSEDSTEP_INLINE static Lanes<T> widen(const S* from) {
    Floats x;
#pragma GCC unroll 16
    for (int k = 0; k < Floats::kParts; ++k) x.part[k] = widen_one(from, k);
    return cast_lanes<T>(x);
  }
  template <class Rounding, class T>
  FUSEDSTEP_INLINE static void narrow(S* to, const Lanes<T>& numbers, const Place& place) {
    const Floats x = cast_lanes<float>(numbers);
#pragma GCC unroll 16
    for (int k = 0; k < Floats::kParts; ++k) {
      const Place here = place.plus(k * kWidth);
      put(to + k * kWidth, Storage<S>::template narrow_part<Rounding>(x.part[k], here));
    }
  }
};

template <>
struct Storage<Bfloat16> : ShortStorage<Bfloat16> {
  using Bits = Lanes<uint32_t>::Part;

  FUSEDSTEP_INLINE static Floats::Part widen_part(Words x) { return Floats::Part(wide_bits(x) << 16); }
  template <class Rounding>
  FUSEDSTEP_INLINE static Words narrow_part(Floats::Part x, const Place& place) {
    return low_halves(bfloat16_bits<Rounding>(x, place) >> 16);
  }

#if defined(__AVX2__) && !defined(__AVX512F__)
  // Two registers are rounded as pairs, and then set apart.
  template <class Rounding, class T>
  FUSEDSTEP_INLINE static void narrow(Bfloat16* to, const Lanes<T>& numbers, const Place& place) {
    const Floats x = cast_lanes<float>(numbers);
    const __m256i pairs =
        __m256i(bfloat16_pairs<Rounding>(x.part[0], x.part[1], place, place.plus(kWidth)));
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256i apart = _mm256_shuffle_epi8(pairs, order);
    put(to, _mm256_permute4x64_epi64(apart, 0xd8));
  }
#endif

  // One or two instructions. The compiler's own conversions take more.
  FUSEDSTEP_INLINE static Bits wide_bits(Words x) {
#if defined(__AVX512F__)
    return Bits(_mm512_maskz_cvtepu16_epi32(kAllLanes, __m256i(x)));
#elif defined(__AVX2__)
    return Bits(_mm256_cvtepu16_epi32(__m128i(x)));
#else
    return __builtin_convertvector(x, Bits);
#endif
  }
  // The high halves are zeros.
  FUSEDSTEP_INLINE static Words low_halves(Bits x) {
#if defined(__AVX512F__)
    return Words(_mm512_maskz_cvtepi32_epi16(kAllLanes, __m512i(x)));
#elif defined(__AVX2__)
    const __m256i packed = _mm256_packus_epi32(__m256i(x), __m256i(x));
    return Words(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8)));
#else
    return __builtin_convertvector(x, Words);
#endif
  }
};

template <>
struct Storage<Bfloat16Pairs> {
  using Floats = Lanes<float>;
  using Bits = Lanes<uint32_t>::Part;
  static constexpr int kPair = 2 * Floats::kWidth;

  FUSEDSTEP_INLINE static Floats::Part widen_one(const Bfloat16Pairs* from, int k) {
    const Bits pairs = get<Bits>(from + k / 2 * kPair);
    return Floats::Part(k % 2 == 0 ? pairs << 16 : pairs & 0xffff0000);
  }
  template <class T>
  FUSEDSTEP_INLINE static Floats widen(const Bfloat16Pairs* from) {
    Floats x;
#pragma GCC unroll 16
    for (int k = 0; k < Floats::kParts; ++k) x.part[k] = widen_one(from, k);
    return x;
  }
  template <class Rounding>
  FUSEDSTEP_INLINE static void narrow(Bfloat16Pairs* to, const Floats& x, const Place& place) {
#pragma GCC unroll 8
    for (int k = 0; k < Floats::kParts; k += 2) {
      const int64_t first = place.index + k / 2 * kPair;
      put(to + k / 2 * kPair,
          bfloat16_pairs<Rounding>(x.part[k], x.part[k + 1], {place.tensor, first, 2},
                                   {place.tensor, first + 1, 2}));
    }
  }
};

template <>
struct Storage<Float16> : ShortStorage<Float16> {
  FUSEDSTEP_INLINE static Floats::Part widen_part(Words x) {
#if defined(__AVX512F__)
    return Floats::Part(_mm512_maskz_cvtph_ps(kAllLanes, __m256i(x)));
#elif defined(__F16C__)
    return Floats::Part(_mm256_cvtph_ps(__m128i(x)));
#elif defined(__aarch64__)
    return Floats::Part(vcvt_f32_f16(float16x4_t(x)));
#else
    Floats::Part out;
    for (int k = 0; k < kWidth; ++k) out[k] = float(__builtin_bit_cast(_Float16, uint16_t(x[k])));
    return out;
#endif
  }
  template <class Rounding>
  FUSEDSTEP_INLINE static Words narrow_part(Floats::Part x, const Place&) {
#if defined(__AVX512F__)
    return Words(_mm512_maskz_cvtps_ph(kAllLanes, __m512(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    return Words(_mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    return Words(vcvt_f16_f32(float32x4_t(x)));
#else
    Words out;
    for (int k = 0; k < kWidth; ++k) out[k] = __builtin_bit_cast(uint16_t, _Float16(x[k]));
    return out;
#endif
  }
};

}  // namespace
}  // namespace fusedstep
