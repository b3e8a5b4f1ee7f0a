// The part of CUDA's runtime that host code may use in the simulator. Names and numbers are CUDA's.
#pragma once

#include <cstddef>
#include <type_traits>

#include "vectors.h"

// (name, number, text of cudaGetErrorString)
#define SIMCUDA_ERRORS(X)                                                                             \
  X(cudaSuccess, 0, "no error")                                                                       \
  X(cudaErrorInvalidValue, 1, "invalid argument")                                                     \
  X(cudaErrorMemoryAllocation, 2, "out of memory")                                                    \
  X(cudaErrorInitializationError, 3, "initialization error")                                          \
  X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                               \
  X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")  \
  X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                    \
  X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                     \
  X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                            \
  X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device") \
  X(cudaErrorUnsupportedPtxVersion, 222,                                                              \
    "the provided PTX was compiled with an unsupported toolchain.")                                   \
  X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                         \
  X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")                    \
  X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")                           \
  X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                        \
  X(cudaErrorNotSupported, 801, "operation not supported")                                            \
  X(cudaErrorUnknown, 999, "unknown error")

enum cudaError_t {
#define SIMCUDA_ERROR(name, number, text) name = number,
  SIMCUDA_ERRORS(SIMCUDA_ERROR)
#undef SIMCUDA_ERROR
};
using cudaError = cudaError_t;
using cudaStream_t = struct CUstream_st*;

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxGridDimX = 5,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};

struct cudaFuncAttributes {
  size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
  int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA;
  int maxDynamicSharedSizeBytes, preferredShmemCarveout;
};

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
union cudaLaunchAttributeValue {
  int programmaticStreamSerializationAllowed;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 grid, block;  // CUDA's names for them are macros here
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace sim {

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
  const void* argument;
  size_t argument_bytes;
  void (*call)(const void* kernel, const void* argument);  // calls the kernel, once per thread
};
cudaError_t launch(const Launch& launch);

cudaError_t attributes_of(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t occupancy(int* blocks, const void* kernel, int threads, size_t shared);

template <class Kernel>
const void* address_of(Kernel* kernel) {
  static_assert(std::is_function_v<Kernel>, "a kernel must be given as a typed function");
  return reinterpret_cast<const void*>(kernel);
}

}  // namespace sim

template <class Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments,
                             size_t shared = 0, cudaStream_t stream = nullptr) {
  static_assert(std::is_trivially_copyable_v<Argument>, "a kernel takes one plain struct by value");
  const auto call = [](const void* kernel, const void* argument) {
    reinterpret_cast<void (*)(Argument)>(kernel)(*static_cast<const Argument*>(argument));
  };
  return sim::launch(
      {sim::address_of(kernel), grid, block, shared, stream, arguments[0], sizeof(Argument), call});
}

// Launches with attributes. The simulator runs kernels one after another, with any attributes.
template <class Argument>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Argument),
                               Argument argument) {
  void* arguments[] = {&argument};
  return cudaLaunchKernel(kernel, config->grid, config->block, arguments, config->dynamicSmemBytes,
                          config->stream);
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel* kernel) {
  return sim::attributes_of(attributes, sim::address_of(kernel));
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return sim::set_attribute(sim::address_of(kernel), attribute, value);
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                          size_t shared) {
  return sim::occupancy(blocks, sim::address_of(kernel), threads, shared);
}

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDriverGetVersion(int* version);
