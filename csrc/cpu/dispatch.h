// The walkers as built for each instruction set, and which of them this machine can run.
#pragma once

#include "../plan.h"

namespace fusedstep {

using Walk = void (*)(const LaunchArgs& launch, const Entry& entry, char* thread_scratch);

// The walker of a launch's rule and compute type, or null if there is none.
using FindWalk = Walk (*)(const LaunchArgs& launch);

struct Level {
  const char* name;
  FindWalk find;
  bool (*runs_here)();
};

// From the widest to the plainest; the last one runs everywhere.
extern const Level kLevels[];
extern const int kLevelCount;

}  // namespace fusedstep
