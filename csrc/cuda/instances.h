// Picks the kernel of a bucket: the only place that maps run-time facts to built kernels.
#pragma once

#include "launch.h"

namespace fusedstep::cuda {

// Each has kernels for the dtypes of training, one for any dtypes, and the same for other ways of
// storage. `momentum_slot` is 0 without momentum.
Kernel elementwise_kernel(int rule, bool in_double, const int32_t* dtypes);
Kernel phase_kernel(Unit unit, int momentum_slot, bool in_double, int width, bool aligned,
                    const int32_t* dtypes);

// Sums squares of gradients of this dtype.
Kernel squares_kernel(int32_t dtype);

}  // namespace fusedstep::cuda
