// Lists the kernels for the norm of the gradients.
#include "instances.h"
#include "squares.cuh"

namespace fusedstep::cuda {
namespace {

template <int G>
Kernel instance() {
  return {gradient_squares<G>, kThreads, int64_t(offsetof(Shared, work))};
}

}  // namespace

Kernel squares_kernel(int32_t dtype) {
  switch (dtype) {
    case kFloat32:
      return instance<kFloat32>();
    case kBfloat16:
      return instance<kBfloat16>();
    case kFloat16:
      return instance<kFloat16>();
    default:
      return instance<kFloat64>();
  }
}

}  // namespace fusedstep::cuda
