// The one choice of a kernel: facts that are known when a bucket is made -> kernels that were built.
#pragma once

#include "launch.h"

namespace fusedstep::cuda {

// Each has kernels for the dtypes that training uses, and one that takes any; waves have only those.
Kernel elementwise_kernel(int rule, bool wide, const int32_t* dtypes);
Kernel phase_kernel(Unit unit, bool momentum, bool wide, int width, bool aligned,
                    const int32_t* dtypes);
Kernel waves_kernel(bool momentum, const int32_t* dtypes);

}  // namespace fusedstep::cuda
