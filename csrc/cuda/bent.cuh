// Numbers of 8 bits: 128 of them share a scale, which is the largest of them. A code is a part of it,
// bent: see ../stored_numbers.h. The threads of a warp that have a block find its scale together.
#pragma once

#include "../stored_numbers.h"
#include "storage.cuh"

namespace fusedstep::cuda {

// `unbent` with one instruction for its maximum, which drops a nan, and one for the rest.
__device__ __forceinline__ float unbent_on_device(float y) {
  return from_bits((to_bits(fmaxf(y, kLeastBent)) << 1) - 2u * kBend);
}

// The threads that have a block, if each has N numbers of it.
template <int N>
constexpr int kSharing = kScaledBlock / N;

// N codes as they are stored, and their scale. `dtype` is kBentInt8 or kBentUint8.
template <class T, int N>
struct Vector<kBent, T, N> {
  static constexpr int kWords = (N + 3) / 4;
  uint32_t word[kWords];
  float scale;
  int dtype;

  __device__ __forceinline__ void clear(int own) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) word[k] = 0;
    scale = 0.0f;
    dtype = own;
  }

  // Numbers of a scale that is not finite are nan.
  __device__ __forceinline__ T operator[](int k) const {
    const bool has_sign = dtype == kBentInt8;
    const float unit = bent<uint32_t>(scale) * (has_sign ? float(1.0 / 127.0) : float(1.0 / 255.0));
    const uint32_t code = word[k / 4] >> (k % 4 * 8);
    const float own = (has_sign ? float(int8_t(code)) : float(uint8_t(code))) * unit;
    const float number = unbent_on_device(fabsf(own));
    if (!(scale < INFINITY)) return T(NAN);
    return T(has_sign ? copysignf(number, own) : number);
  }
};

template <>
struct Slot<kBent, true> {
  static constexpr int kShift = 7;
  static_assert(1 << kShift == kScaledBlock);
  char *base, *companion;
  int dtype;

  __device__ __forceinline__ char* at(int64_t i) const { return base + i; }
  __device__ __forceinline__ float* scale_at(int64_t i) const {
    return reinterpret_cast<float*>(companion) + (i >> kShift);
  }
  __device__ __forceinline__ Slot from(int64_t i) const {
    return {at(i), reinterpret_cast<char*>(scale_at(i)), dtype};
  }
  __device__ __forceinline__ bool aligned() const {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0;
  }

  template <class T, int N>
  __device__ __forceinline__ void load(int64_t i, Vector<kBent, T, N>& x) const {
    load_words<N>(at(i), x.word);
    x.scale = *scale_at(i);
    x.dtype = dtype;
  }
  template <class T, int N>
  __device__ __forceinline__ void load_each(int64_t i, Vector<kBent, T, N>& x) const {
    x.clear(dtype);
#pragma unroll
    for (int k = 0; k < N; ++k)
      x.word[k / 4] |= uint32_t(*reinterpret_cast<const uint8_t*>(at(i + k))) << (k % 4 * 8);
    x.scale = *scale_at(i);
  }

  // All threads of a warp must call this together. Those without numbers store nothing.
  template <class T, int N, class Noise>
  __device__ __forceinline__ void store(int64_t i, const T (&x)[N], const Noise&, bool is_here,
                                        bool aligned) const {
    const bool has_sign = dtype == kBentInt8;
    uint32_t most = 0;  // as bits: a nan is larger than any number
#pragma unroll
    for (int k = 0; k < N; ++k) most = max(most, size_bits(float(x[k])));
#pragma unroll
    for (int offset = kSharing<N> / 2; offset > 0; offset /= 2)
      most = max(most, __shfl_xor_sync(kAllLanes, most, offset));
    // If all numbers are 0, or the scale is not finite, so are the codes.
    const bool is_usual = most - 1u < 0x7f7fffffu;
    const float scale = from_bits(most);
    const float factor = (has_sign ? 127.0f : 255.0f) / bent<uint32_t>(scale);
    uint32_t code[N];
#pragma unroll
    for (int k = 0; k < N; ++k) code[k] = coded(float(x[k]), factor, has_sign);
    __syncwarp();  // all threads have loaded the scale that one of them will store
    if (!is_here) return;
    if (thread() % kSharing<N> == 0) *scale_at(i) = scale;
    uint32_t word[N / 4];
#pragma unroll
    for (int k = 0; k < N / 4; ++k) {
      const uint32_t low = __byte_perm(code[4 * k], code[4 * k + 1], 0x40);
      const uint32_t high = __byte_perm(code[4 * k + 2], code[4 * k + 3], 0x40);
      word[k] = is_usual ? __byte_perm(low, high, 0x5410) : 0;
    }
    if (aligned) return store_words<N>(at(i), word);
#pragma unroll
    for (int k = 0; k < N; ++k)
      *reinterpret_cast<uint8_t*>(at(i + k)) = uint8_t(word[k / 4] >> (k % 4 * 8));
  }

 private:
  static __device__ __forceinline__ uint32_t size_bits(float x) { return to_bits(x) & 0x7fffffffu; }
  // The code is the last byte. Only 0 has the code 0, if codes have no sign.
  static __device__ __forceinline__ uint32_t coded(float x, float factor, bool has_sign) {
    // The nearest integer is what is left in the last bits after a large number was added.
    constexpr float kLast = 12582912.0f;
    const float level = bent<uint32_t>(from_bits(size_bits(x))) * factor;
    if (has_sign) return to_bits(copysignf(level, x) + kLast);
    return max(to_bits(level + kLast), min(size_bits(x), 1u) + to_bits(kLast));
  }
};

}  // namespace fusedstep::cuda
