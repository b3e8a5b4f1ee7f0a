// Loads and stores numbers that are stored in other ways than in a dtype, as storage.cuh does with
// dtypes: see python/fusedstep/plan/storage.py.
#pragma once

#include "bent.cuh"

namespace fusedstep::cuda {

template <class T, int N>
struct Vector<kNoisyBfloat16, T, N> : Vector<kBfloat16, T, N> {};

// Bfloat16 numbers and rests of R bytes, as they are stored.
template <int R, class T, int N>
struct WithRests {
  static constexpr int kWords = (N * R + 3) / 4, kPer = 4 / R, kBits = 8 * R;
  Vector<kBfloat16, T, N> high;
  uint32_t rest[kWords];

  __device__ __forceinline__ void clear() {
    high.clear();
#pragma unroll
    for (int k = 0; k < kWords; ++k) rest[k] = 0;
  }
  __device__ __forceinline__ void load(const char* from, const char* companion) {
    if constexpr (N == 1) {
      clear();
      load_one(0, from, companion);
    } else {
      high.load(from, kBfloat16);
      load_words<N * R>(companion, rest);
    }
  }
  __device__ __forceinline__ void load_one(int k, const char* from, const char* companion) {
    using Rest = std::conditional_t<R == 2, uint16_t, uint8_t>;
    high.load_one(k, from);
    rest[k / kPer] |= uint32_t(*reinterpret_cast<const Rest*>(companion)) << (k % kPer * kBits);
  }
  // A rest has a sign, and the bits below the bfloat16, from the highest on.
  __device__ __forceinline__ T operator[](int k) const {
    const uint32_t own = high.word[k / 2];
    const int32_t at_top = int32_t(rest[k / kPer] << ((kPer - 1 - k % kPer) * kBits));
    const int32_t low = (at_top >> (32 - kBits)) * (R == 1 ? 256 : 1);
    return T(from_bits((k % 2 == 0 ? own << 16 : own & 0xffff0000u) + uint32_t(low)));
  }
};
template <class T, int N>
struct Vector<kRest16, T, N> : WithRests<2, T, N> {};
template <class T, int N>
struct Vector<kRest8, T, N> : WithRests<1, T, N> {};

// The companion is the number; the parameter is its rounded value.
template <class T, int N>
struct Vector<kCopiedFloat16, T, N> : Vector<kFloat32, T, N> {
  using Numbers = Vector<kFloat32, T, N>;
  __device__ __forceinline__ void load(const char*, const char* companion) {
    Numbers::load(companion, kFloat32);
  }
  __device__ __forceinline__ void load_one(int k, const char*, const char* companion) {
    Numbers::load_one(k, companion);
  }
};

// The bits of a number to split, whose upper half is the bfloat16 when 0x8000 was added. In the lower
// half is what it then has beside it. Bits that a short rest does not have are rounded away.
template <int D>
__device__ __forceinline__ uint32_t bits_to_split(float x) {
  const uint32_t bits = x != x ? 0x7fc00000u : to_bits(x);
  return D == kRest16 ? bits : (bits + 0x7f + (bits >> 8 & 1)) & 0xffffff00u;
}

template <int D>
struct Slot<D, true> {
  static constexpr int kBeside = D == kRest16  ? 2
                                 : D == kRest8 ? 1
                                               : 4;  // bytes of a companion's number
  char *base, *companion;
  int dtype;

  __device__ __forceinline__ char* at(int64_t i) const { return base + 2 * i; }
  __device__ __forceinline__ char* beside(int64_t i) const { return companion + kBeside * i; }
  __device__ __forceinline__ Slot from(int64_t i) const { return {at(i), beside(i), dtype}; }
  __device__ __forceinline__ bool aligned() const {
    return (reinterpret_cast<uintptr_t>(base) | reinterpret_cast<uintptr_t>(companion)) % 16 == 0;
  }

  template <class T, int N>
  __device__ __forceinline__ void load(int64_t i, Vector<D, T, N>& x) const {
    x.load(at(i), beside(i));
  }
  template <class T, int N>
  __device__ __forceinline__ void load_each(int64_t i, Vector<D, T, N>& x) const {
    x.clear();
#pragma unroll
    for (int k = 0; k < N; ++k) x.load_one(k, at(i + k), beside(i + k));
  }

  template <class T>
  __device__ __forceinline__ T load_one(int64_t i) const {
    Vector<D, T, 1> x;
    load(i, x);
    return x[0];
  }

  template <class T, int N, class Noise = NoNoise>
  __device__ __forceinline__ void store(int64_t i, const T (&x)[N], const Noise& = {}) const {
    if constexpr (N == 1) {
      store_each(i, x);
    } else if constexpr (D == kCopiedFloat16) {
      cuda::store<kFloat16>(at(i), kFloat16, x);
      cuda::store<kFloat32>(beside(i), kFloat32, x);
    } else {
      constexpr int kPer = 4 / kBeside;
      uint32_t word[N / 2], rest[N / kPer] = {};
#pragma unroll
      for (int k = 0; k < N; k += 2) {
        const uint32_t low = bits_to_split<D>(float(x[k])), high = bits_to_split<D>(float(x[k + 1]));
        word[k / 2] = upper_halves(low + 0x8000, high + 0x8000);
        if (D == kRest16)
          rest[k / kPer] = (low & 0xffff) | high << 16;
        else
          rest[k / kPer] |= ((low >> 8 & 0xff) | (high & 0xff00)) << (k % kPer * 8);
      }
      store_words<2 * N>(at(i), word);
      store_words<kBeside * N>(beside(i), rest);
    }
  }
  template <class T, int N, class Noise = NoNoise>
  __device__ __forceinline__ void store_each(int64_t i, const T (&x)[N], const Noise& = {}) const {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if constexpr (D == kCopiedFloat16) {
        cuda::store_one<kFloat16>(at(i + k), kFloat16, x[k]);
        cuda::store_one<kFloat32>(beside(i + k), kFloat32, x[k]);
      } else {
        using Rest = std::conditional_t<D == kRest16, uint16_t, uint8_t>;
        const uint32_t bits = bits_to_split<D>(float(x[k]));
        *reinterpret_cast<uint16_t*>(at(i + k)) = uint16_t((bits + 0x8000) >> 16);
        *reinterpret_cast<Rest*>(beside(i + k)) = Rest(bits >> (16 - 8 * kBeside));
      }
    }
  }
};

}  // namespace fusedstep::cuda
