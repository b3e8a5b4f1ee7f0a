// Picks the walker of a factored rule. Built once for each instruction set, with FUSEDSTEP_FACTORED
// as the function's name.
#include "dispatch.h"
#include "exchanged.h"
#include "flat.h"

namespace fusedstep {
namespace {

template <bool Momentum, class T>
Walk find(const LaunchArgs& launch) {
  if (launch.exchange.flat != 0) return walk_flat<FlatMatrix<T, Momentum>>;
  if (launch.exchange.sums != nullptr)
    return launch.vectors ? walk_exchanged<ExchangedVector<T, Momentum>>
                          : walk_exchanged<ExchangedMatrix<T, Momentum>>;
  return launch.vectors ? walk_factored<VectorTensor<T, Momentum>>
                        : walk_factored<MatrixTensor<T, Momentum>>;
}

}  // namespace

Walk FUSEDSTEP_FACTORED(const LaunchArgs& launch, bool momentum) {
  if (momentum) return launch.in_float64 ? find<true, double>(launch) : find<true, float>(launch);
  return launch.in_float64 ? find<false, double>(launch) : find<false, float>(launch);
}

}  // namespace fusedstep
