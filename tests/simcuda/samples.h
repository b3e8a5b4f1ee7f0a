// What the sample kernels are given, and the doors to them.
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

// How blocks hand on what they have written.
enum class Order { kAcquireRelease, kFences, kNoRelease, kNoFence, kNoBarrier };

// The launch's error, or empty.
std::string launch(const std::string& name, unsigned grid, unsigned block, size_t shared, Lists lists);
std::string allow_shared(int bytes);
std::vector<int> device_facts();

}  // namespace samples
