// Runs a launch's work round by round, on torch's own OpenMP pool.
#pragma once

#include "dispatch.h"

namespace fusedstep {

// Whether torch's pool was found when the module was loaded. Without it a launch uses one thread.
bool has_pool();

void carry_out(const LaunchArgs& launch, Walk walk);

}  // namespace fusedstep
