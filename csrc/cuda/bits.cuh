// Converts between float32 numbers and the bits of stored 16- and 32-bit numbers. Rounds to
// nearest, ties to even, as torch does.
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

}  // namespace fusedstep::cuda
