// Carries out a launch's work, phase by phase, on torch's own OpenMP pool.
#pragma once

#include "walk.h"

namespace fusedstep {

// Whether torch's pool was found when the module was loaded; without it a launch takes one thread.
bool has_pool();

void carry_out(const Launch& launch, Walk walk);

}  // namespace fusedstep
