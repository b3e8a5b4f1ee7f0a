// The simulator's settings, which tests change, and the counts that they read afterwards.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>

#include "host.h"

namespace sim {

// The hook raised an error in Python, which is set there.
struct HookError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Settings {
  uint64_t seed = 0;           // 0: everything runs in order
  uint64_t launches_with = 0;  // launches since this seed was set; each one is random in another way
  int multiprocessors = 4;
  int blocks_per_multiprocessor = 2;  // the most that the occupancy functions return
  int resident = 0;                   // blocks under way at a time; 0: what occupancy says
  std::function<cudaError_t(const Launch&)> hook;
  std::map<std::string, cudaError_t> next_error;  // what a runtime function returns next, by name
  std::map<const void*, int64_t> launches;        // by kernel, with those that the hook took
  int64_t memsets = 0;
  std::map<const void*, int> shared_limit;  // of kernels that asked for more shared memory
  cudaError_t last_error = cudaSuccess;
};
extern Settings settings;

std::string name_of(const void* kernel);  // its symbol, or empty if the linker does not export it

Settings initial_settings();  // from the environment: SIMCUDA_SEED, SIMCUDA_RESIDENT

}  // namespace sim
