// The walkers of each instruction set, and which of them this machine can run.
#pragma once

#include "../plan.h"

namespace fusedstep {

using Walk = void (*)(const LaunchArgs& launch, const Entry& entry, char* thread_scratch);

// The walker of a launch's rule and compute type, or null if there is none.
using FindWalk = Walk (*)(const LaunchArgs& launch);

// The walker of the benchmark's floor, for elements of this many bytes, or null if there is none.
using FindFloor = Walk (*)(int64_t item_bytes);

// The walker that sums squares of gradients of this dtype, which is known.
using FindSquares = Walk (*)(int64_t dtype);

struct Level {
  const char* name;
  FindWalk find;
  FindFloor find_floor;
  FindSquares find_squares;
  bool (*runs_here)();
};

// The widest first. The last one runs everywhere.
extern const Level kLevels[];
extern const int kLevelCount;

}  // namespace fusedstep
