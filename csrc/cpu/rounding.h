// How numbers are rounded that are stored with fewer bits: the policies, and float32 to bfloat16.
#pragma once

#include "lanes.h"

namespace fusedstep {
namespace {

// Where the numbers of a store lie: a tensor of the launch, the index of the first one in it, and how
// far apart they are.
struct Place {
  int64_t tensor, index, stride = 1;
  FUSEDSTEP_INLINE Place plus(int64_t i) const { return {tensor, index + i, stride}; }
};

// The halves of the words of one register.
using Halves = Vector<uint16_t, kRegisterBytes / 2>;

// How numbers are rounded that are stored with fewer bits: to the nearest, ties to even. A rounding
// that depends on the place of a number is another such type. It needs no `round_halves`.
struct NearestEven {
  // What is added to the bits of a float32 before its low half is cut off.
  template <class Bits>
  FUSEDSTEP_INLINE static Bits addend(Bits bits, const Place&) {
    return ((bits >> 16) & 1) + 0x7fff;
  }
  // The same for high halves and low halves that lie apart, so for twice as many numbers at once. A
  // low half carries if it is above its middle, or in the middle while the high half is odd. The
  // comparison has a sign, because SSE and AVX2 know no other.
  FUSEDSTEP_INLINE static Halves round_halves(Halves high, Halves low) {
    using Signed = Vector<int16_t, sizeof(Halves) / 2>;
    return high - Halves(Signed((low | (high & 1)) ^ 0x8000) > 0);
  }
};

template <class Rounding, class = void>
struct RoundsHalves : std::false_type {};
template <class Rounding>
struct RoundsHalves<Rounding, std::void_t<decltype(&Rounding::round_halves)>> : std::true_type {};

// The bits of numbers as bfloat16 are the high halves of the result. Every nan becomes the same quiet
// nan.
template <class Rounding>
FUSEDSTEP_INLINE auto bfloat16_bits(Lanes<float>::Part x, const Place& place) {
  using Bits = Lanes<uint32_t>::Part;
  const Bits bits = Bits(x);
  return x != x ? Bits{} + 0x7fc00000 : bits + Rounding::addend(bits, place);
}

// a, with the high half of each word from b.
FUSEDSTEP_INLINE Halves mix_halves(Halves a, Halves b) {
#if defined(__AVX512F__)
  return Halves(_mm512_mask_blend_epi16(0xaaaaaaaa, __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return Halves(_mm256_blend_epi16(__m256i(a), __m256i(b), 0xaa));
#else
  using Bits = Lanes<uint32_t>::Part;
  return Halves((Bits(a) & 0xffff) | (Bits(b) & 0xffff0000));
#endif
}

// Whether a or b may have a nan. Where the answer takes long it is yes.
FUSEDSTEP_INLINE bool may_be_nan([[maybe_unused]] Lanes<float>::Part a,
                                 [[maybe_unused]] Lanes<float>::Part b) {
#if defined(__AVX512F__)
  return true;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(__m256(a), __m256(b), _CMP_UNORD_Q)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmpunord_ps(__m128(a), __m128(b))) != 0;
#else
  return true;
#endif
}

// Numbers as bfloat16: those of `even` in the low halves of words, those of `odd` in the high ones.
// Nans are replaced in a branch: on an AMD EPYC, AdamW in the cache gains 20 % by it (2026-11-26).
template <class Rounding>
FUSEDSTEP_INLINE Halves bfloat16_pairs(Lanes<float>::Part even, Lanes<float>::Part odd,
                                       const Place& even_place, const Place& odd_place) {
  using Bits = Lanes<uint32_t>::Part;
  if constexpr (RoundsHalves<Rounding>::value) {
    const Bits e = Bits(even), o = Bits(odd);
    Halves words = Rounding::round_halves(mix_halves(Halves(e >> 16), Halves(o)),
                                          mix_halves(Halves(e), Halves(o << 16)));
    if (__builtin_expect(may_be_nan(even, odd), 0)) {
      const Halves nan = mix_halves(Halves(even != even), Halves(odd != odd));
      words = (nan & 0x7fc0) | (~nan & words);
    }
    return words;
  } else {
    return Halves((bfloat16_bits<Rounding>(even, even_place) >> 16) |
                  (bfloat16_bits<Rounding>(odd, odd_place) & 0xffff0000));
  }
}

}  // namespace
}  // namespace fusedstep
