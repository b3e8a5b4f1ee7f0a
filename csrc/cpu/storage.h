// How numbers of the compute type T are stored in tensors: the storage types and all conversions, which
// run in registers.
#pragma once

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
// ones of their numbers, so none has to move across a register.
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

// S for such loops. With one register of kLanes, pairs gain nothing.
template <class S>
struct AnyOrderOf {
  using type = S;
};
template <class S>
using PairsOf = std::conditional_t<(Lanes<float>::kParts > 1), InPairs<S>, S>;
template <class Rounding>
struct AnyOrderOf<Bfloat16Of<Rounding>> {
  using type = PairsOf<Bfloat16Of<Rounding>>;
};
template <class R>
struct AnyOrderOf<Rest<R>> {
  using type = PairsOf<Rest<R>>;
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
  template <class T>
  FUSEDSTEP_INLINE static void narrow(S* to, const Lanes<T>& x, const Place&) {
    put_lanes(to, cast_lanes<S>(x));
  }
};

// Sixteen bits, by way of float32.
using Floats = Lanes<float>;
constexpr int kWidth = Floats::kWidth;
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

template <class S>
struct ShortStorage {
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
  template <class T>
  FUSEDSTEP_INLINE static void narrow(S* to, const Lanes<T>& numbers, const Place& place) {
    const Floats x = cast_lanes<float>(numbers);
#pragma GCC unroll 16
    for (int k = 0; k < Floats::kParts; ++k) {
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
  template <class T>
  FUSEDSTEP_INLINE static void narrow(S* to, const Lanes<T>& numbers, const Place& place) {
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
constexpr int kPair = 2 * kWidth;
template <class Convert>
FUSEDSTEP_INLINE void by_pairs(Convert&& convert) {
#pragma GCC unroll 8
  for (int k = 0; k < Floats::kParts; k += 2) convert(k, k / 2 * kPair);
}

template <class Rounding>
struct Storage<InPairs<Bfloat16Of<Rounding>>> {
  using S = InPairs<Bfloat16Of<Rounding>>;
  FUSEDSTEP_INLINE static Floats::Part widen_one(const S* from, int k) {
    const Words32 pairs = get<Words32>(from + k / 2 * kPair);
    return Floats::Part(k % 2 == 0 ? pairs << 16 : pairs & 0xffff0000);
  }
  template <class T>
  FUSEDSTEP_INLINE static Floats widen(const S* from) {
    Floats x;
#pragma GCC unroll 16
    for (int k = 0; k < Floats::kParts; ++k) x.part[k] = widen_one(from, k);
    return x;
  }
  FUSEDSTEP_INLINE static void narrow(S* to, const Floats& x, const Place& place) {
    by_pairs([&](int k, int i) FUSEDSTEP_LAMBDA {
      put(to + i, bfloat16_pairs<Rounding>(x.part[k], x.part[k + 1], place.each_second(i),
                                           place.each_second(i + 1)));
    });
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
    Floats::Part out{};
    for (int k = 0; k < kWidth; ++k) out[k] = float(__builtin_bit_cast(_Float16, uint16_t(x[k])));
    return out;
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
    Words out{};
    for (int k = 0; k < kWidth; ++k) out[k] = __builtin_bit_cast(uint16_t, _Float16(x[k]));
    return out;
#endif
  }
};

}  // namespace
}  // namespace fusedstep
