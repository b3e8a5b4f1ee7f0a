// How numbers are rounded that are stored with fewer bits: the policies, and float32 to bfloat16.
#pragma once

#include "../noise.h"
#include "lanes.h"

namespace fusedstep {
namespace {

// Where the numbers of a store lie in the whole tensor: the index of the first one, and how far apart
// they are. Noise depends on it, and on the keys of the tensor's step and the slot. Other roundings
// read nothing of it, so it costs them nothing.
struct Place {
  NoiseKeys keys;
  int64_t index = 0;
  int slot = 0;
  int64_t stride = 1;

  FUSEDSTEP_INLINE Place plus(int64_t i) const { return {keys, index + i, slot, stride}; }
  FUSEDSTEP_INLINE Place of(int other) const { return {keys, index, other, stride}; }
  FUSEDSTEP_INLINE Place each_second(int64_t first) const { return {keys, index + first, slot, 2}; }
};

// The halves of the words of one register.
using Halves = Vector<uint16_t, kRegisterBytes / 2>;
using SignedHalves = Vector<int16_t, kRegisterBytes / 2>;
using Words32 = Lanes<uint32_t>::Part;

// a, with the high half of each word from b.
FUSEDSTEP_INLINE Halves mix_halves(Halves a, Halves b) {
#if defined(__AVX512F__)
  return Halves(_mm512_mask_blend_epi16(0xaaaaaaaa, __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return Halves(_mm256_blend_epi16(__m256i(a), __m256i(b), 0xaa));
#else
  return Halves((Words32(a) & 0xffff) | (Words32(b) & 0xffff0000));
#endif
}

// The high halves of the words of two registers, those of `even` in the low halves; and the low ones.
FUSEDSTEP_INLINE Halves high_halves(Words32 even, Words32 odd) {
  return mix_halves(Halves(even >> 16), Halves(odd));
}
FUSEDSTEP_INLINE Halves low_halves(Words32 even, Words32 odd) {
  return mix_halves(Halves(even), Halves(odd << 16));
}

// A rounding gives what is added to the bits of a float32 before its low half is cut off. It does the
// same to high halves and low halves that lie apart, so to twice as many numbers at once.

// To the nearest, ties to even.
struct NearestEven {
  static constexpr bool kKeepsFinite = false;
  FUSEDSTEP_INLINE static Words32 addend(Words32 bits, const Place&) {
    return ((bits >> 16) & 1) + 0x7fff;
  }
  // A low half carries if it is above its middle, or in the middle while the high half is odd. The
  // comparison has a sign, because SSE and AVX2 know no other.
  FUSEDSTEP_INLINE static Halves round_halves(Halves high, Halves low, const Place&, const Place&) {
    return high - Halves(SignedHalves((low | (high & 1)) ^ 0x8000) > 0);
  }
};

// Up with the probability that the low half has of all 2^16. A finite number stays finite.
struct Noise {
  static constexpr bool kKeepsFinite = true;
  FUSEDSTEP_INLINE static Words32 bits_at(const Place& place) {
    Words32 from{};
    for (int k = 0; k < int(sizeof(from) / 4); ++k) from[k] = uint32_t(k) * kPlaceFactor;
    const uint32_t first = noise_of_place(place.index, place.keys);
    return noise_bits(from * uint32_t(place.stride) + first, place.keys.second,
                      kNoiseMultipliers[place.slot]);
  }
  FUSEDSTEP_INLINE static Words32 addend(Words32 bits, const Place& place) {
    const Words32 noise = (bits_at(place) >> 16) ^ kNoiseFlip;
    return (bits & 0x7fff0000) == 0x7f7f0000 ? Words32{} : noise;
  }
  // The flip turns the comparison of what is added with what is missing into one with a sign.
  FUSEDSTEP_INLINE static Halves round_halves(Halves high, Halves low, const Place& even,
                                              const Place& odd) {
    const Halves noise = high_halves(bits_at(even), bits_at(odd));
    return high - Halves(SignedHalves(low ^ 0x8000) > SignedHalves(noise));
  }
};

// Every nan becomes the same quiet nan.
FUSEDSTEP_INLINE Words32 bits_of(Lanes<float>::Part x) {
  return x != x ? Words32{} + 0x7fc00000 : Words32(x);
}

// The bits of numbers as bfloat16 are the high halves of the result.
template <class Rounding>
FUSEDSTEP_INLINE Words32 bfloat16_bits(Lanes<float>::Part x, const Place& place) {
  const Words32 bits = Words32(x);
  return x != x ? Words32{} + 0x7fc00000 : bits + Rounding::addend(bits, place);
}

// Whether a or b may have a nan. Where the answer takes long it is yes.
FUSEDSTEP_INLINE bool may_be_nan([[maybe_unused]] Lanes<float>::Part a,
                                 [[maybe_unused]] Lanes<float>::Part b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_UNORD_Q) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(__m256(a), __m256(b), _CMP_UNORD_Q)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmpunord_ps(__m128(a), __m128(b))) != 0;
#else
  return true;
#endif
}

// Whether any word may be true.
FUSEDSTEP_INLINE bool may_be_any([[maybe_unused]] SignedHalves words) {
#if defined(__AVX512BW__)
  return _mm512_movepi16_mask(__m512i(words)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8(__m256i(words)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8(__m128i(words)) != 0;
#else
  return true;
#endif
}

// Numbers as bfloat16: those of `even` in the low halves of words, those of `odd` in the high ones.
// Strange numbers are replaced in a branch: on an AMD EPYC, AdamW in the cache gains 20 % by it
// (2026-11-26).
template <class Rounding>
FUSEDSTEP_INLINE Halves bfloat16_pairs(Lanes<float>::Part even, Lanes<float>::Part odd,
                                       const Place& even_place, const Place& odd_place) {
  const Words32 e = Words32(even), o = Words32(odd);
  const Halves high = high_halves(e, o);
  Halves words = Rounding::round_halves(high, low_halves(e, o), even_place, odd_place);
  constexpr uint16_t kLast = 0x7f7f;  // of the largest finite number
  const bool is_strange =
      Rounding::kKeepsFinite ? may_be_any(SignedHalves(high & 0x7fff) >= kLast) : may_be_nan(even, odd);
  if (__builtin_expect(is_strange, 0)) {
    const Halves nan = mix_halves(Halves(even != even), Halves(odd != odd));
    if (Rounding::kKeepsFinite) {
      const Halves last = Halves(SignedHalves(high & 0x7fff) == kLast);
      words = (last & high) | (~last & words);
    }
    words = (nan & 0x7fc0) | (~nan & words);
  }
  return words;
}

// A float32 as a bfloat16 and a rest: high is rounded to nearest, ties away from zero, and low is what
// the number has beside it, with a sign. Both directions lose nothing.
template <class Half>
FUSEDSTEP_INLINE Half high_beside(Half high, Half low) {
  return high + (low >> 15);
}
template <class Half>
FUSEDSTEP_INLINE Half high_joined(Half high, Half low) {
  return high - (low >> 15);
}

// Numbers whose bits below `kLowest` are rounded away, to nearest, ties to even.
template <int kLowest>
FUSEDSTEP_INLINE Words32 rounded_bits(Words32 bits) {
  if constexpr (kLowest == 0) return bits;
  constexpr uint32_t kBelow = (1u << kLowest) - 1;
  return (bits + (kBelow >> 1) + ((bits >> kLowest) & 1)) & ~kBelow;
}

}  // namespace
}  // namespace fusedstep
