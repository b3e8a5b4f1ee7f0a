// CUDA's small vectors, with the alignment that the hardware's vector loads need.
#pragma once

#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define SIMCUDA_PAIR(Name, Number)          \
  struct alignas(2 * sizeof(Number)) Name { \
    Number x, y;                            \
  };                                        \
  constexpr Name make_##Name(Number x, Number y) { return {x, y}; }

#define SIMCUDA_FOUR(Name, Number)          \
  struct alignas(4 * sizeof(Number)) Name { \
    Number x, y, z, w;                      \
  };                                        \
  constexpr Name make_##Name(Number x, Number y, Number z, Number w) { return {x, y, z, w}; }

SIMCUDA_PAIR(int2, int)
SIMCUDA_PAIR(uint2, unsigned)
SIMCUDA_PAIR(float2, float)
SIMCUDA_PAIR(double2, double)
SIMCUDA_PAIR(longlong2, long long)
SIMCUDA_PAIR(ulonglong2, unsigned long long)
SIMCUDA_FOUR(int4, int)
SIMCUDA_FOUR(uint4, unsigned)
SIMCUDA_FOUR(float4, float)
SIMCUDA_FOUR(ushort4, unsigned short)

#undef SIMCUDA_PAIR
#undef SIMCUDA_FOUR
