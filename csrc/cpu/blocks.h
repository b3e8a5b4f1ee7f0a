// States of 8 bits: blocks of numbers that share a scale, which is the largest of them. A code is a
// part of it, bent (stored_numbers.h).
#pragma once

#include "../stored_numbers.h"
#include "storage.h"

namespace fusedstep {
namespace {

template <class Code>
constexpr float kLevels = std::is_signed_v<Code> ? 127.0f : 255.0f;
using Integers = Vector<int32_t, kWidth>;

// The largest size of a number in a block, as bits: a nan is larger than any number.
struct Largest {
  Integers bits{};
  FUSEDSTEP_INLINE void add(Floats::Part x) {
    const Integers own = Integers(x) & 0x7fffffff;
    bits = own > bits ? own : bits;
  }
  FUSEDSTEP_INLINE int32_t of_all() const {
    int32_t found = 0;
    for (int k = 0; k < kWidth; ++k) found = bits[k] > found ? bits[k] : found;
    return found;
  }
};

// kLanes codes as float32 numbers: in their order, or if `pairs` in pairs (lanes.h).
template <bool pairs, class Code>
FUSEDSTEP_INLINE Floats widen_codes(const Code* from) {
  Floats x;
  constexpr bool has_sign = std::is_signed_v<Code>;
  auto put_integers = [&](int k, Integers own)
                          FUSEDSTEP_LAMBDA { x.part[k] = __builtin_convertvector(own, Floats::Part); };
  if constexpr (pairs) {
#pragma GCC unroll 8
    for (int k = 0; k < Floats::kParts; k += 2) {
      const Words32 two = wide_bits(get<Words>(from + k * kWidth));
      put_integers(k, has_sign ? Integers(two << 24) >> 24 : Integers(two & 0xff));
      put_integers(k + 1, has_sign ? Integers(two << 16) >> 24 : Integers(two >> 8));
    }
    return x;
  }
#pragma GCC unroll 16
  for (int k = 0; k < Floats::kParts; ++k) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + k * kWidth));
    put_integers(k, Integers(has_sign ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes)));
#else
    const auto bytes = get<Vector<Code, kWidth> >(from + k * kWidth);
    put_integers(k, __builtin_convertvector(bytes, Integers));
#endif
  }
  return x;
}

// The last bytes of 4 kWidth integers as codes.
template <bool pairs, class Code>
FUSEDSTEP_INLINE void narrow_codes(Code* to, const Integers (&x)[4]) {
  const Integers low = Integers{} + 0xff;
  if constexpr (pairs) {
#pragma GCC unroll 2
    for (int k = 0; k < 4; k += 2)
      put(to + k * kWidth, low_words(Words32((x[k] & low) | (x[k + 1] & low) << 8)));
    return;
  }
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i first = _mm256_packus_epi32(__m256i(x[0] & low), __m256i(x[1] & low));
  const __m256i second = _mm256_packus_epi32(__m256i(x[2] & low), __m256i(x[3] & low));
  const __m256i mixed = _mm256_packus_epi16(first, second);
  put(to, _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#else
  using Codes = Vector<Code, kWidth>;
  for (int k = 0; k < 4; ++k) put(to + k * kWidth, __builtin_convertvector(x[k] & low, Codes));
#endif
}

// The numbers of kLanes codes.
template <bool pairs, class Code>
FUSEDSTEP_INLINE Floats lanes_of_codes(const Code* code, float scale) {
  if (__builtin_expect(!(scale < __builtin_inff()), 0)) return Floats(__builtin_nanf(""));
  const float unit = bent<int32_t>(scale) * (1.0f / kLevels<Code>);
  Floats x = widen_codes<pairs>(code);
#pragma GCC unroll 16
  for (int k = 0; k < Floats::kParts; ++k) {
    const Floats::Part own = x.part[k] * unit;
    const Integers size = Integers(own) & 0x7fffffff;
    x.part[k] = unbent<Integers>(Floats::Part(size));
    if constexpr (std::is_signed_v<Code>)
      x.part[k] = Floats::Part(Integers(x.part[k]) | (Integers(own) ^ size));
  }
  return x;
}

// The codes of one block. Only 0 has the code 0, if codes have no sign.
template <bool pairs, class Code>
FUSEDSTEP_INLINE void store_codes(Code* code, const float* x, float factor) {
  for (int j = 0; j < kScaledBlock; j += 4 * kWidth) {
    Integers levels[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Integers bits = get<Integers>(x + j + k * kWidth), size = bits & 0x7fffffff;
      const Floats::Part level = bent<Integers>(Floats::Part(size)) * factor;
      // The nearest integer is what is left in the last bits after a large number was added.
      constexpr float kLast = 12582912.0f;
      if constexpr (std::is_signed_v<Code>) {
        levels[k] = Integers(Floats::Part(Integers(level) | (bits ^ size)) + kLast);
      } else {
        const Integers least = size < 1 ? size : Integers{} + 1;
        const Integers own = Integers(level + kLast) - same_bits<int32_t>(kLast);
        levels[k] = own > least ? own : least;
      }
    }
    narrow_codes<pairs>(code + j, levels);
  }
}

// One block of a slot: codes of either kind, and their scale.
struct Block {
  char* code;
  float* scale;
  bool has_sign;

  Block() = default;
  FUSEDSTEP_INLINE Block(const Stored& x, int64_t i)
      : code(x.at + i),
        scale(reinterpret_cast<float*>(x.companion) + i / kScaledBlock),
        has_sign(x.code == kBentInt8) {}

  template <bool pairs = false>
  FUSEDSTEP_INLINE Floats lanes(int j) const {
    if (has_sign) return lanes_of_codes<pairs>(reinterpret_cast<const int8_t*>(code) + j, *scale);
    return lanes_of_codes<pairs>(reinterpret_cast<const uint8_t*>(code) + j, *scale);
  }
  // Stores a new scale. Returns the factor of codes: 0 if they are all 0, because every number is 0 or
  // the scale is not finite.
  FUSEDSTEP_INLINE float store_scale(const Largest& largest) const {
    const int32_t bits = largest.of_all();
    *scale = same_bits<float>(bits);
    if (bits == 0 || bits >= 0x7f800000) return 0.0f;
    return (has_sign ? kLevels<int8_t> : kLevels<uint8_t>) / bent<int32_t>(*scale);
  }
  template <bool pairs = false>
  FUSEDSTEP_INLINE void store(const float* x, float factor) const {
    if (factor == 0.0f) return void(std::memset(code, 0, kScaledBlock));
    if (has_sign) return store_codes<pairs>(reinterpret_cast<int8_t*>(code), x, factor);
    store_codes<pairs>(reinterpret_cast<uint8_t*>(code), x, factor);
  }
};

template <class T>
void load_blocks(const Stored& from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; i += kScaledBlock) {
    const Block block(from, i);
    for (int j = 0; j < kScaledBlock; j += kLanes) put_lanes(to + i + j, cast_lanes<T>(block.lanes(j)));
  }
}

template <class T>
void store_blocks(const Stored& to, int64_t n, const T* x) {
  for (int64_t i = 0; i < n; i += kScaledBlock) {
    float own[kScaledBlock];
    Largest largest;
    for (int j = 0; j < kScaledBlock; j += kLanes) {
      const Floats lanes = cast_lanes<float>(get_lanes(x + i + j));
      for (int k = 0; k < Floats::kParts; ++k) largest.add(lanes.part[k]);
      put_lanes(own + j, lanes);
    }
    const Block block(to, i);
    block.store(own, block.store_scale(largest));
  }
}

}  // namespace
}  // namespace fusedstep
