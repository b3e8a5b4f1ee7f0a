// Sums of squares of the gradients, for their norm: one pass that only reads. It knows no rule.
//
// A bfloat16 or float32 number is exact in float64, and so is its square, so no sum overflows. The sums
// of a tensor's pieces have places of their own, in float64, in the order of the pieces.
#include "dispatch.h"
#include "sums.h"

namespace fusedstep {
namespace {

template <class S>
void walk_squares(const LaunchArgs& launch, const Entry& entry, char*) {
  const S* g =
      reinterpret_cast<const S*>(launch.table[entry.tensor * launch.fields + ElementwiseRow::kG]) +
      entry.index;
  double total[1];
  row_square_sums<double>(
      std::min<int64_t>(kCpuRun, launch.elements[entry.tensor] - entry.index), 1,
      [&](int, int64_t j, auto n) FUSEDSTEP_LAMBDA { return widen<double>(g + j, n); }, total);
  double* sums = reinterpret_cast<double*>(launch.scratch);
  sums[launch.scratch_of[entry.tensor] + entry.index / kCpuRun] = total[0];
}

}  // namespace

Walk FUSEDSTEP_SQUARES(int64_t dtype) {
  return with_storage(dtype, [](auto* type) -> Walk {
    return walk_squares<std::remove_const_t<std::remove_pointer_t<decltype(type)>>>;
  });
}

}  // namespace fusedstep
