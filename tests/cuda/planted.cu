// Kernels for the tests of test_compiled.py: each but the first has a fault that it must see.
#include <cuda_runtime.h>
namespace planted {
__global__ void plain(float4* x) {
  float4 a = x[threadIdx.x];
  a.x = a.y = a.z = a.w = a.x * a.y + a.z / sqrtf(a.w);
  x[threadIdx.x] = a;
}
__global__ void fused(float* x) { x[threadIdx.x] = fmaf(x[0], x[1], x[2]); }
__global__ void approximate(float* x) { x[threadIdx.x] = __fdividef(x[0], __expf(x[1])); }
__global__ void atomic(float* x) { atomicAdd(x, x[threadIdx.x]); }
__global__ void narrow(const float* x, float* y) {
  for (int k = 0; k < 4; ++k) y[4 * threadIdx.x + k] = x[4 * threadIdx.x + k];
}
__global__ void generic(size_t* x) {
  __shared__ float4 own[32];
  float4* to = x[1] == 0 ? own : reinterpret_cast<float4*>(x[1]);
  to[threadIdx.x] = reinterpret_cast<float4*>(x[0])[threadIdx.x];
  __syncthreads();
  reinterpret_cast<float4*>(x[2])[threadIdx.x] = own[31 - threadIdx.x];
}
__global__ void __launch_bounds__(1024, 2) spilled(float* x) {
  float a[64];
  for (int k = 0; k < 64; ++k) a[k] = x[k * 1024 + threadIdx.x];
  __syncthreads();
  for (int k = 0; k < 64; ++k) x[k * 1024 + threadIdx.x] = a[63 - k] * a[(k * 7) & 63];
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ != 800
template <int N>
__global__ void late(float* x) {
  x[threadIdx.x] = N;
}
template __global__ void late<3>(float*);
#endif
}  // namespace planted
