// How numbers of the compute type T are stored in tensors: all conversions, which run in registers.
#pragma once

#include "stored.h"

namespace fusedstep {
namespace {

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
  template <class T, int n>
  FUSEDSTEP_INLINE static Lanes<T, n> widen(const S* from) {
    return cast_lanes<T>(get_lanes<n>(from));
  }
  template <class T, int n>
  FUSEDSTEP_INLINE static void narrow(S* to, const Lanes<T, n>& x, const Place&) {
    put_lanes(to, cast_lanes<S>(x));
  }
};

// Sixteen bits, by way of float32.
using Floats = Lanes<float>;
constexpr int kWidth = Floats::kWidth;
constexpr int kPair = 2 * kWidth;
using Words = Vector<uint16_t, kWidth>;

// One or two instructions. The compiler's own conversions take more.
FUSEDSTEP_INLINE Words32 wide_bits(Words x) {
#if defined(__AVX512F__)
  return Words32(_mm512_maskz_cvtepu16_epi32(kAllLanes, __m256i(x)));
#elif defined(__AVX2__)
  return Words32(_mm256_cvtepu16_epi32(__m128i(x)));
#else
  return __builtin_convertvector(x, Words32);
#endif
}
// The high halves are zeros.
FUSEDSTEP_INLINE Words low_words(Words32 x) {
#if defined(__AVX512F__)
  return Words(_mm512_maskz_cvtepi32_epi16(kAllLanes, __m512i(x)));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32(__m256i(x), __m256i(x));
  return Words(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8)));
#else
  return __builtin_convertvector(x, Words);
#endif
}

// n numbers, register k of which is `convert(k)`.
template <int n, class Convert>
FUSEDSTEP_INLINE Lanes<float, n> by_registers(Convert&& convert) {
  Lanes<float, n> x;
#pragma GCC unroll 16
  for (int k = 0; k < x.kParts; ++k) x.part[k] = convert(k);
  return x;
}

template <class S>
struct ShortStorage {
  FUSEDSTEP_INLINE static Floats::Part widen_one(const S* from, int k) {
    return Storage<S>::widen_part(get<Words>(from + k * kWidth));
  }
  template <class T, int n>
  FUSEDSTEP_INLINE static Lanes<T, n> widen(const S* from) {
    return cast_lanes<T>(by_registers<n>([&](int k) FUSEDSTEP_LAMBDA { return widen_one(from, k); }));
  }
  template <class T, int n>
  FUSEDSTEP_INLINE static void narrow(S* to, const Lanes<T, n>& numbers, const Place& place) {
    const Lanes<float, n> x = cast_lanes<float>(numbers);
#pragma GCC unroll 16
    for (int k = 0; k < x.kParts; ++k) {
      const Place here = place.plus(k * kWidth);
      put(to + k * kWidth, Storage<S>::narrow_part(x.part[k], here));
    }
  }
};

template <class Rounding>
struct Storage<Bfloat16Of<Rounding>> : ShortStorage<Bfloat16Of<Rounding>> {
  using S = Bfloat16Of<Rounding>;
  FUSEDSTEP_INLINE static Floats::Part widen_part(Words x) { return Floats::Part(wide_bits(x) << 16); }
  FUSEDSTEP_INLINE static Words narrow_part(Floats::Part x, const Place& place) {
    return low_words(bfloat16_bits<Rounding>(x, place) >> 16);
  }

#if defined(__AVX2__) && !defined(__AVX512F__)
  // Two registers are rounded as pairs, and then set apart.
  template <class T, int n>
  FUSEDSTEP_INLINE static void narrow(S* to, const Lanes<T, n>& numbers, const Place& place) {
    static_assert(n == kPair);
    const Floats x = cast_lanes<float>(numbers);
    const __m256i pairs =
        __m256i(bfloat16_pairs<Rounding>(x.part[0], x.part[1], place, place.plus(kWidth)));
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256i apart = _mm256_shuffle_epi8(pairs, order);
    put(to, _mm256_permute4x64_epi64(apart, 0xd8));
  }
#endif
};

// Pairs of 16-bit numbers, for conversions that take two registers with even and odd numbers.
template <int n, class Convert>
FUSEDSTEP_INLINE void by_pairs(Convert&& convert) {
#pragma GCC unroll 8
  for (int k = 0; k < n / kWidth; k += 2) convert(k, k / 2 * kPair);
}

template <class Rounding>
struct Storage<InPairs<Bfloat16Of<Rounding>>> {
  using S = InPairs<Bfloat16Of<Rounding>>;
  FUSEDSTEP_INLINE static Floats::Part widen_one(const S* from, int k) {
    const Words32 pairs = get<Words32>(from + k / 2 * kPair);
    return Floats::Part(k % 2 == 0 ? pairs << 16 : pairs & 0xffff0000);
  }
  template <class T, int n>
  FUSEDSTEP_INLINE static Lanes<float, n> widen(const S* from) {
    return by_registers<n>([&](int k) FUSEDSTEP_LAMBDA { return widen_one(from, k); });
  }
  template <int n>
  FUSEDSTEP_INLINE static void narrow(S* to, const Lanes<float, n>& x, const Place& place) {
    by_pairs<n>([&](int k, int i) FUSEDSTEP_LAMBDA {
      put(to + i, bfloat16_pairs<Rounding>(x.part[k], x.part[k + 1], place.each_second(i),
                                           place.each_second(i + 1)));
    });
  }
};

#if !defined(__F16C__) && !defined(__aarch64__)
// The conversions of half precision without an instruction for them, as those instructions do them. The
// compiler's own would need a newer library when the module is loaded.
constexpr uint32_t kSign16 = 0x8000, kInfinity16 = 0x7c00, kQuiet16 = 0x200;
constexpr uint32_t kInfinity32 = 0x7f800000, kQuiet32 = 0x400000;
constexpr uint32_t kBias = 112u << 23;         // between the exponents of the two, in float32
constexpr uint32_t kLeastNormal = 113u << 23;  // 2^-14
constexpr uint32_t kBeyond = 0x47800000;       // 65536

FUSEDSTEP_INLINE Floats::Part float_of_half(Words32 x) {
  const Words32 sign = (x & kSign16) << 16, size = x & ~kSign16;
  const Words32 shifted = (size << 13) + kBias;
  const Words32 special =
      (size << 13) | kInfinity32 | (size > kInfinity16 ? kQuiet32 + Words32{} : Words32{});
  // A subnormal number is a whole number of 2^-24.
  using Integers = Vector<int32_t, kWidth>;
  const auto subnormal = __builtin_convertvector(Integers(size), Floats::Part) * 0x1p-24f;
  const Words32 finite = size < 0x400 ? Words32(subnormal) : shifted;
  return Floats::Part(sign | (size >= kInfinity16 ? special : finite));
}

FUSEDSTEP_INLINE Words32 half_of_float(Words32 x) {
  const Words32 sign = x >> 16 & kSign16, size = x & 0x7fffffff;
  // To the nearest, ties to even. What is too large becomes infinite by a carry.
  const Words32 rounded = (size - kBias + 0xfff + (size >> 13 & 1)) >> 13;
  // The last bit of a sum with 0.5 is 2^-24, that of a subnormal number.
  const Words32 subnormal = Words32(Floats::Part(size) + 0.5f) - 0x3f000000;
  const Words32 nan = (size >> 13 & 0x3ff) | kInfinity16 | kQuiet16;
  const Words32 finite = size < kLeastNormal ? subnormal : rounded;
  const Words32 large = size > kInfinity32 ? nan : kInfinity16 + Words32{};
  return sign | (size >= kBeyond ? large : finite);
}
#endif

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
    return float_of_half(wide_bits(x));
#endif
  }
  FUSEDSTEP_INLINE static Words narrow_part(Floats::Part x, const Place&) {
#if defined(__AVX512F__)
    return Words(_mm512_maskz_cvtps_ph(kAllLanes, __m512(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    return Words(_mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    return Words(vcvt_f16_f32(float32x4_t(x)));
#else
    return low_words(half_of_float(Words32(x)));
#endif
  }
};

}  // namespace
}  // namespace fusedstep
