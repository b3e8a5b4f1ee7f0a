// A libcuda that loads no kernel and counts no device: it records launches, for tests of launchers.
#include <cuda.h>
#include <stdint.h>
#include <string.h>

enum { kNumbers = 8, kParams = 32 };  // of a launch, and of its parameters
static uint64_t last[kNumbers + kParams];
static int n_launches = 0, n_params = 0;
static uintptr_t n_functions = 0;

// How many parameters a launch has: libcuda knows it from the kernel.
void expect_params(int count) { n_params = count; }
int launches(void) { return n_launches; }
const uint64_t* last_launch(void) { return last; }

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params,
                          void** extra) {
  const uint64_t numbers[kNumbers] = {(uint64_t)(uintptr_t)function,
                                      (uint64_t)(uintptr_t)config->hStream,
                                      config->gridDimX,
                                      config->gridDimY,
                                      config->gridDimZ,
                                      config->blockDimX,
                                      config->sharedMemBytes,
                                      config->numAttrs};
  memcpy(last, numbers, sizeof(numbers));
  for (int k = 0; k < n_params; ++k) memcpy(last + kNumbers + k, params[k], sizeof(uint64_t));
  ++n_launches;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  *function = (CUfunction)++n_functions;
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  *module = (CUmodule)1;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr*)value = pointer;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  *value = 1024;  // threads of a block
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  *value = 227 << 10;  // bytes of shared memory
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int ordinal) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t* value, CUlimit limit) { return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = "an error";
  return CUDA_SUCCESS;
}
