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

// The largest of n integers. Halves are compared until one is left: one by one takes twice as long.
template <int n>
FUSEDSTEP_INLINE int32_t largest_of(const Vector<int32_t, n>& x) {
  if constexpr (n == 2) {
    return x[0] > x[1] ? x[0] : x[1];
  } else {
    Vector<int32_t, n / 2> half[2];
    put(half, x);
    return largest_of<n / 2>(half[0] > half[1] ? half[0] : half[1]);
  }
}

// The largest size of a number in a block, as bits: a nan is larger than any number.
struct Largest {
  Integers bits{};
  FUSEDSTEP_INLINE void add(Floats::Part x) {
    const Integers own = Integers(x) & 0x7fffffff;
    bits = own > bits ? own : bits;
  }
  FUSEDSTEP_INLINE int32_t of_all() const { return largest_of<kWidth>(bits); }
};

// n codes as float32 numbers: in their order, or if `pairs` in pairs (lanes.h).
template <bool pairs, int n, class Code>
FUSEDSTEP_INLINE Lanes<float, n> widen_codes(const Code* from) {
  Lanes<float, n> x;
  constexpr bool has_sign = std::is_signed_v<Code>;
  auto put_integers = [&](int k, Integers own)
                          FUSEDSTEP_LAMBDA { x.part[k] = __builtin_convertvector(own, Floats::Part); };
  if constexpr (pairs) {
#pragma GCC unroll 8
    for (int k = 0; k < x.kParts; k += 2) {
      const Words32 two = wide_bits(get<Words>(from + k * kWidth));
      put_integers(k, has_sign ? Integers(two << 24) >> 24 : Integers(two & 0xff));
      put_integers(k + 1, has_sign ? Integers(two << 16) >> 24 : Integers(two >> 8));
    }
    return x;
  }
#pragma GCC unroll 16
  for (int k = 0; k < x.kParts; ++k) {
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

// The last bytes of n integers as codes.
template <bool pairs, int n>
FUSEDSTEP_INLINE void narrow_codes(char* to, const Lanes<int32_t, n>& x) {
  const Integers low = Integers{} + 0xff;
  if constexpr (pairs) {
#pragma GCC unroll 8
    for (int k = 0; k < x.kParts; k += 2)
      put(to + k * kWidth, low_words(Words32((x.part[k] & low) | (x.part[k + 1] & low) << 8)));
    return;
  }
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(__m256i(x.part[0] & low), __m256i(x.part[1] & low)), 0xd8);
  put(to, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#else
  using Codes = Vector<uint8_t, kWidth>;
  for (int k = 0; k < x.kParts; ++k)
    put(to + k * kWidth, __builtin_convertvector(x.part[k] & low, Codes));
#endif
}

// What one code is worth, and what makes every number nan if the scale is not finite.
template <class Code>
struct Unit {
  float of_code, poison;
  FUSEDSTEP_INLINE explicit Unit(float scale)
      : of_code(bent<int32_t>(scale) * (1.0f / kLevels<Code>)), poison(scale - scale) {}
};

// The numbers of n codes.
template <bool pairs, int n, class Code>
FUSEDSTEP_INLINE Lanes<float, n> lanes_of_codes(const Code* code, const Unit<Code>& unit) {
  Lanes<float, n> x = widen_codes<pairs, n>(code);
#pragma GCC unroll 16
  for (int k = 0; k < x.kParts; ++k) {
    const Integers bits = Integers(x.part[k] * unit.of_code);
    if constexpr (std::is_signed_v<Code>) {
      const Integers size = bits & 0x7fffffff;
      x.part[k] = Floats::Part(unbent_bits(size) | (bits ^ size)) + unit.poison;
    } else {
      x.part[k] = Floats::Part(unbent_bits(bits)) + unit.poison;
    }
  }
  return x;
}

// The codes of n numbers. If codes have no sign, only 0 has the code 0. With a factor of 0 all
// codes are 0.
template <bool pairs, int n, class Code>
FUSEDSTEP_INLINE void store_codes(Code* code, const float* x, float factor) {
  Lanes<int32_t, n> levels;
  const Integers one = Integers{} + (factor != 0.0f);
#pragma GCC unroll 16
  for (int k = 0; k < levels.kParts; ++k) {
    const Integers bits = get<Integers>(x + k * kWidth), size = bits & 0x7fffffff;
    const Floats::Part level = bent<Integers>(Floats::Part(size)) * factor;
    // The nearest integer is what is left in the last bits after a large number was added.
    constexpr float kLast = 12582912.0f;
    if constexpr (std::is_signed_v<Code>) {
      levels.part[k] = Integers(Floats::Part(Integers(level) | (bits ^ size)) + kLast);
    } else {
      const Integers least = size < one ? size : one;
      const Integers own = Integers(level + kLast) - same_bits<int32_t>(kLast);
      levels.part[k] = own > least ? own : least;
    }
  }
  narrow_codes<pairs>(reinterpret_cast<char*>(code), levels);
}

// Stores the scale of a block. Returns the factor of its codes: 0 if every number is 0, or one is not
// finite.
template <class Code>
FUSEDSTEP_INLINE float store_scale(float* scale, const Largest& largest) {
  const int32_t bits = largest.of_all();
  *scale = same_bits<float>(bits);
  if (bits == 0 || bits >= 0x7f800000) return 0.0f;
  return kLevels<Code> / bent<int32_t>(*scale);
}

// The blocks of a slot with codes of this type.
template <class C>
struct Blocks {
  using Code = C;
  Code* code;
  float* scale;

  explicit Blocks(const Stored& x)
      : code(reinterpret_cast<Code*>(x.at)), scale(reinterpret_cast<float*>(x.companion)) {}
  FUSEDSTEP_INLINE float* scale_at(int64_t i) const { return scale + i / kScaledBlock; }
};

// Calls `function` with the blocks of a slot.
template <class Function>
FUSEDSTEP_INLINE void with_blocks(const Stored& x, Function&& function) {
  if (x.code == kBentInt8) return function(Blocks<int8_t>(x));
  function(Blocks<uint8_t>(x));
}

template <class T>
void load_blocks(const Stored& from, int64_t n, T* to) {
  with_blocks(from, [&](auto blocks) FUSEDSTEP_LAMBDA {
    for (int64_t i = 0; i < n; i += kScaledBlock) {
      const Unit<typename decltype(blocks)::Code> unit(*blocks.scale_at(i));
      for (int64_t j = i; j < i + kScaledBlock; j += kLanes)
        put_lanes(to + j, cast_lanes<T>(lanes_of_codes<false, kLanes>(blocks.code + j, unit)));
    }
  });
}

template <class T>
void store_blocks(const Stored& to, int64_t n, const T* x) {
  with_blocks(to, [&](auto blocks) FUSEDSTEP_LAMBDA {
    for (int64_t i = 0; i < n; i += kScaledBlock) {
      float own[kScaledBlock];
      Largest largest;
      for (int j = 0; j < kScaledBlock; j += kLanes) {
        const Floats lanes = cast_lanes<float>(get_lanes(x + i + j));
        for (int k = 0; k < Floats::kParts; ++k) largest.add(lanes.part[k]);
        put_lanes(own + j, lanes);
      }
      const float factor = store_scale<typename decltype(blocks)::Code>(blocks.scale_at(i), largest);
      for (int j = 0; j < kScaledBlock; j += kLanes)
        store_codes<false, kLanes>(blocks.code + i + j, own + j, factor);
    }
  });
}

}  // namespace
}  // namespace fusedstep
