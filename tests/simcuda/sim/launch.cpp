// CUDA's runtime for host code. Launches are checked as on a device, and run before they return.
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "machine.h"
#include "settings.h"

// Symbols of the linker: a table with the start of the nops that __launch_bounds__ puts before kernels.
#define SIMCUDA_ENTRIES(end) __##end##___patchable_function_entries
extern "C" __attribute__((weak, visibility("hidden"))) const char* const SIMCUDA_ENTRIES(start)[];
extern "C" __attribute__((weak, visibility("hidden"))) const char* const SIMCUDA_ENTRIES(stop)[];

namespace sim {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kMostThreadsOfMultiprocessor = 2048;
constexpr int kShared = 48 << 10;        // bytes that a kernel may have by default
constexpr int kSharedOptin = 227 << 10;  // bytes that it may ask for, with compute capability 9.0
constexpr int kSharedOfMultiprocessor = 228 << 10;

std::mutex one_launch_at_a_time;  // released before a hook runs, because the hook takes the GIL

// Every runtime function returns through this. Returns its own result, or the error that a test
// injected.
cudaError_t report(const char* function, cudaError_t error) {
  const auto next = settings.next_error.find(function);
  if (next != settings.next_error.end()) {
    error = next->second;
    settings.next_error.erase(next);
  }
  if (error != cudaSuccess) settings.last_error = error;
  return error;
}

bool will_fail(const char* function) { return settings.next_error.count(function) != 0; }

int limit_of(const void* kernel) {
  const auto limit = settings.shared_limit.find(kernel);
  return limit == settings.shared_limit.end() ? kShared : limit->second;
}

int most_threads_of(const void* kernel) {
  constexpr char kNop = char(0x90);
  const char* entry = static_cast<const char*>(kernel);
  for (const char* const* start = SIMCUDA_ENTRIES(start); start < SIMCUDA_ENTRIES(stop); ++start) {
    const bool near = *start < entry && entry - *start <= kMostThreads / 32;
    if (near && std::count(*start, entry, kNop) == entry - *start) return int(entry - *start) * 32;
  }
  return kMostThreads;
}

cudaError_t check(const Launch& launch) {
  const dim3 grid = launch.grid, block = launch.block;
  const bool block_fits = block.x >= 1 && block.y >= 1 && block.z >= 1 && block.x <= kMostThreads &&
                          block.y <= kMostThreads && block.z <= 64 &&
                          block.x * block.y * block.z <= unsigned(most_threads_of(launch.kernel));
  const bool grid_fits = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x < 1u << 31 &&
                         grid.y < 1u << 16 && grid.z < 1u << 16;
  if (!block_fits || !grid_fits) return cudaErrorInvalidConfiguration;
  if (launch.shared > size_t(limit_of(launch.kernel))) return cudaErrorInvalidValue;
  return cudaSuccess;
}

int blocks_of_multiprocessor(int threads, size_t shared) {
  int blocks = std::min(settings.blocks_per_multiprocessor, kMostThreadsOfMultiprocessor / threads);
  if (shared > 0) blocks = std::min(blocks, int(kSharedOfMultiprocessor / (shared + 1024)));
  return blocks;
}

cudaError_t carry_out(const Launch& launch) {
  std::unique_lock<std::mutex> lock(one_launch_at_a_time);
  ++settings.launches[launch.kernel];
  if (settings.hook) {
    lock.unlock();
    return settings.hook(launch);
  }
  const int threads = int(launch.block.x * launch.block.y * launch.block.z);
  int resident = settings.resident;
  if (resident == 0) {
    resident = settings.multiprocessors * blocks_of_multiprocessor(threads, launch.shared);
  }
  // Mixes the seed and the number of the launch, so that neighbours differ in many bits. Never 0.
  uint64_t seed = settings.seed;
  if (seed != 0) seed = (seed * 0x9e3779b97f4a7c15 + ++settings.launches_with) * 0xd1342543de82ef95 | 1;
  machine.run(launch, size_t(resident), seed);
  return cudaSuccess;
}

int from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? 0 : std::atoi(value);
}

}  // namespace

Settings settings = initial_settings();

Settings initial_settings() {
  Settings initial;
  initial.seed = uint64_t(from_environment("SIMCUDA_SEED"));
  initial.resident = from_environment("SIMCUDA_RESIDENT");
  return initial;
}

std::string name_of(const void* kernel) {
  Dl_info info;
  const bool found = dladdr(kernel, &info) != 0 && info.dli_saddr == kernel;
  return found ? info.dli_sname : "";
}

std::string readable_name_of(const void* kernel) {
  const std::string name = name_of(kernel);
  char* readable = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, nullptr);
  const std::string result = readable == nullptr ? name : readable;
  std::free(readable);
  return result.substr(0, result.find('('));
}

cudaError_t launch(const Launch& launch) {
  if (will_fail("cudaLaunchKernel")) return report("cudaLaunchKernel", cudaSuccess);
  const cudaError_t error = check(launch);
  if (error != cudaSuccess) return report("cudaLaunchKernel", error);
  return report("cudaLaunchKernel", carry_out(launch));
}

cudaError_t attributes_of(cudaFuncAttributes* attributes, const void* kernel) {
  *attributes = {};
  attributes->maxThreadsPerBlock = most_threads_of(kernel);
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = limit_of(kernel);
  return report("cudaFuncGetAttributes", cudaSuccess);
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > kSharedOptin) return report("cudaFuncSetAttribute", cudaErrorInvalidValue);
    settings.shared_limit[kernel] = value;
  }
  return report("cudaFuncSetAttribute", cudaSuccess);
}

cudaError_t occupancy(int* blocks, const void* kernel, int threads, size_t shared) {
  const char* function = "cudaOccupancyMaxActiveBlocksPerMultiprocessor";
  if (threads < 1) return report(function, cudaErrorInvalidValue);
  const bool fits = threads <= most_threads_of(kernel) && shared <= size_t(limit_of(kernel));
  *blocks = fits ? blocks_of_multiprocessor(threads, shared) : 0;
  return report(function, cudaSuccess);
}

}  // namespace sim

using sim::report;

cudaError_t cudaGetLastError() { return std::exchange(sim::settings.last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return sim::settings.last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define SIMCUDA_NAME(name, number, text) \
  case name:                             \
    return #name;
    SIMCUDA_ERRORS(SIMCUDA_NAME)
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define SIMCUDA_TEXT(name, number, text) \
  case name:                             \
    return text;
    SIMCUDA_ERRORS(SIMCUDA_TEXT)
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDeviceCount(int* count) {
  const cudaError_t error = report("cudaGetDeviceCount", cudaSuccess);
  if (error == cudaSuccess) *count = 1;
  return error;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return report("cudaGetDevice", cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  return report("cudaSetDevice", device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const std::map<cudaDeviceAttr, int> values = {
      {cudaDevAttrMaxThreadsPerBlock, sim::kMostThreads},
      {cudaDevAttrMaxGridDimX, 0x7fffffff},
      {cudaDevAttrMaxSharedMemoryPerBlock, sim::kShared},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMultiProcessorCount, sim::settings.multiprocessors},
      {cudaDevAttrL2CacheSize, 50 << 20},
      {cudaDevAttrMaxThreadsPerMultiProcessor, sim::kMostThreadsOfMultiprocessor},
      {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, sim::kSharedOfMultiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, sim::kSharedOptin},
  };
  const auto found = values.find(attribute);
  if (device != 0) return report("cudaDeviceGetAttribute", cudaErrorInvalidDevice);
  if (found == values.end()) return report("cudaDeviceGetAttribute", cudaErrorInvalidValue);
  *value = found->second;
  return report("cudaDeviceGetAttribute", cudaSuccess);
}

cudaError_t cudaDeviceSynchronize() { return report("cudaDeviceSynchronize", cudaSuccess); }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return report("cudaStreamSynchronize", cudaSuccess); }

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (!sim::will_fail("cudaMemsetAsync")) std::memset(memory, value, bytes), ++sim::settings.memsets;
  return report("cudaMemsetAsync", cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return report("cudaRuntimeGetVersion", cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return report("cudaDriverGetVersion", cudaSuccess);
}
