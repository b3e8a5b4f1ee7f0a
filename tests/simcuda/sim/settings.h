// What tests can set, and what they can read afterwards.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "host.h"

namespace sim {

struct Settings {
  uint64_t seed = 0;           // 0: everything in order
  uint64_t launches_with = 0;  // this seed; each launch has its own randomness
  int multiprocessors = 4;
  int blocks_per_multiprocessor = 2;  // at most, as the occupancy functions say
  int resident = 0;                   // blocks under way at a time; 0: as many as they say
  std::function<cudaError_t(const Launch&)> hook;
  std::map<std::string, cudaError_t> next_error;  // of a function of the runtime, by its name
  std::map<const void*, int64_t> launches;        // by kernel, hooked ones too
  int64_t memsets = 0;
  std::map<const void*, int> shared_limit;  // of kernels that may have more shared memory
  cudaError_t last_error = cudaSuccess;
};
extern Settings settings;

std::string name_of(const void* kernel);  // as the linker knows it, or empty

Settings initial_settings();  // from the environment: SIMCUDA_SEED, SIMCUDA_RESIDENT

}  // namespace sim
