// Storage types with a companion: parameters beside what they lack of their float32 master weight.
#pragma once

#include "storage.h"

namespace fusedstep {
namespace {

// A rest has the bits of a float32 from kLowest on that are below the bfloat16, with a sign.
template <class R>
constexpr int kLowest = 16 - 8 * int(sizeof(R));

// Rests as low halves, and back.
template <class R, class Half>
FUSEDSTEP_INLINE Half low_of_rests(const R* from) {
  if constexpr (sizeof(R) == 2) return get<Half>(from);
  using Bytes = Vector<uint8_t, sizeof(Half) / 2>;
  return __builtin_convertvector(get<Bytes>(from), Half) << kLowest<R>;
}
template <class R, class Half>
FUSEDSTEP_INLINE void put_rests(R* to, Half low) {
  if constexpr (sizeof(R) == 2) return put(to, low);
  const Half bytes = low >> kLowest<R>;
#if defined(__AVX512BW__)
  if constexpr (sizeof(Half) == 64)
    return put(to, _mm512_maskz_cvtepi16_epi8(0xffffffff, __m512i(bytes)));
#elif defined(__AVX2__)
  if constexpr (sizeof(Half) == 32) {
    const __m128i first = __m128i(_mm256_castsi256_si128(__m256i(bytes)));
    return put(to, _mm_packus_epi16(first, _mm256_extracti128_si256(__m256i(bytes), 1)));
  }
#endif
  using Bytes = Vector<uint8_t, sizeof(Half) / 2>;
  put(to, __builtin_convertvector(bytes, Bytes));
}

template <class R>
struct Storage<Rest<R>> {
  using From = Beside<Rest<R>>;
  FUSEDSTEP_INLINE static Floats::Part widen_one(const From& from, int k) {
    const Words low = low_of_rests<R, Words>(from.companion + k * kWidth);
    const Words high = high_joined(get<Words>(from.at + k * kWidth), low);
    return Floats::Part(wide_bits(high) << 16 | wide_bits(low));
  }
  template <class T, int n>
  FUSEDSTEP_INLINE static Lanes<T, n> widen(const From& from) {
    return cast_lanes<T>(by_registers<n>([&](int k) FUSEDSTEP_LAMBDA { return widen_one(from, k); }));
  }
  template <class T, int n>
  FUSEDSTEP_INLINE static void narrow(const From& to, const Lanes<T, n>& numbers, const Place&) {
    const Lanes<float, n> x = cast_lanes<float>(numbers);
#pragma GCC unroll 16
    for (int k = 0; k < x.kParts; ++k) {
      const Words32 bits = rounded_bits<kLowest<R>>(bits_of(x.part[k]));
      const Words low = low_words(bits & 0xffff);
      put(to.at + k * kWidth, high_beside(low_words(bits >> 16), low));
      put_rests(to.companion + k * kWidth, low);
    }
  }
};

template <class R>
struct Storage<InPairs<Rest<R>>> {
  using From = Beside<InPairs<Rest<R>>>;
  FUSEDSTEP_INLINE static Floats::Part widen_one(const From& from, int k) {
    const int i = k / 2 * kPair;
    const Halves low = low_of_rests<R, Halves>(from.companion + i);
    const Halves high = high_joined(get<Halves>(from.at + i), low);
    if (k % 2 == 0) return Floats::Part(mix_halves(low, Halves(Words32(high) << 16)));
    return Floats::Part(mix_halves(Halves(Words32(low) >> 16), high));
  }
  template <class T, int n>
  FUSEDSTEP_INLINE static Lanes<float, n> widen(const From& from) {
    return by_registers<n>([&](int k) FUSEDSTEP_LAMBDA { return widen_one(from, k); });
  }
  template <int n>
  FUSEDSTEP_INLINE static void narrow(const From& to, const Lanes<float, n>& x, const Place&) {
    by_pairs<n>([&](int k, int i) FUSEDSTEP_LAMBDA {
      Words32 even = Words32(x.part[k]), odd = Words32(x.part[k + 1]);
      if (__builtin_expect(may_be_nan(x.part[k], x.part[k + 1]), 0))
        even = bits_of(x.part[k]), odd = bits_of(x.part[k + 1]);
      even = rounded_bits<kLowest<R>>(even), odd = rounded_bits<kLowest<R>>(odd);
      const Halves low = low_halves(even, odd);
      put(to.at + i, high_beside(high_halves(even, odd), low));
      put_rests(to.companion + i, low);
    });
  }
};

// The copy is the number; the parameter is its rounded value.
template <>
struct Storage<CopiedFloat16> {
  using From = Beside<CopiedFloat16>;
  FUSEDSTEP_INLINE static Floats::Part widen_one(const From& from, int k) {
    return Storage<float>::widen_one(from.companion, k);
  }
  template <class T, int n>
  FUSEDSTEP_INLINE static Lanes<T, n> widen(const From& from) {
    return Storage<float>::widen<T, n>(from.companion);
  }
  template <class T, int n>
  FUSEDSTEP_INLINE static void narrow(const From& to, const Lanes<T, n>& x, const Place& place) {
    Storage<Float16>::narrow(reinterpret_cast<Float16*>(to.at), x, place);
    Storage<float>::narrow(to.companion, x, place);
  }
};

}  // namespace
}  // namespace fusedstep
