// The argument of the sample kernels, and the functions that launch them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace samples {

struct Lists {
  const float* x;
  float* out;
  int* counters;
  int n, stages, shift;
  unsigned mask;
};

// How a block tells others that its data is written; the last three are wrong.
enum class Order { kAcquireRelease, kFences, kNoRelease, kNoFence, kNoBarrier };

// Returns the error of the launch, or an empty string.
std::string launch(const std::string& name, unsigned grid, unsigned block, size_t shared, Lists lists);
std::string allow_shared(int bytes);
std::vector<int> device_facts();

}  // namespace samples
