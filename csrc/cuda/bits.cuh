// Converts between float32 numbers and the bits of stored 16- and 32-bit numbers. Rounds to
// nearest, ties to even, as torch does. Loads and stores words.
#pragma once

#include "device.cuh"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fusedstep::cuda {

__device__ __forceinline__ float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

__device__ __forceinline__ uint32_t to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

__device__ __forceinline__ float from_half(uint32_t bits) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#else
  const uint16_t narrow = static_cast<uint16_t>(bits);
  _Float16 x;
  memcpy(&x, &narrow, 2);
  return float(x);
#endif
}

__device__ __forceinline__ uint32_t two_halves(float low, float high) {
#if defined(__CUDACC__)
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
#else
  const _Float16 pair[2] = {_Float16(low), _Float16(high)};
  uint32_t bits;
  memcpy(&bits, pair, 4);
  return bits;
#endif
}

__device__ __forceinline__ uint32_t two_bfloat16(float low, float high) {
#if defined(__CUDACC__)
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
#else
  auto rounded = [](float x) {
    const uint32_t bits = to_bits(x);
    return x != x ? 0x7fffu : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
#endif
}

// Two numbers whose bfloat16 is the upper half of their bits.
__device__ __forceinline__ uint32_t upper_halves(uint32_t low, uint32_t high) {
  return low >> 16 | (high & 0xffff0000u);
}

// Moves 4, 8, or a multiple of 16 bytes. The address is a multiple of so many bytes, or of 16.
template <int kBytes>
__device__ __forceinline__ void load_words(const char* from, uint32_t* word) {
  if constexpr (kBytes >= 16) {
#pragma unroll
    for (int k = 0; k < kBytes / 16; ++k) {
      const uint4 four = reinterpret_cast<const uint4*>(from)[k];
      word[4 * k] = four.x, word[4 * k + 1] = four.y;
      word[4 * k + 2] = four.z, word[4 * k + 3] = four.w;
    }
  } else if constexpr (kBytes == 8) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    word[0] = two.x, word[1] = two.y;
  } else {
    word[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

template <int kBytes>
__device__ __forceinline__ void store_words(char* to, const uint32_t* word) {
  if constexpr (kBytes >= 16) {
#pragma unroll
    for (int k = 0; k < kBytes / 16; ++k)
      reinterpret_cast<uint4*>(to)[k] =
          make_uint4(word[4 * k], word[4 * k + 1], word[4 * k + 2], word[4 * k + 3]);
  } else if constexpr (kBytes == 8) {
    *reinterpret_cast<uint2*>(to) = make_uint2(word[0], word[1]);
  } else {
    *reinterpret_cast<uint32_t*>(to) = word[0];
  }
}

}  // namespace fusedstep::cuda
