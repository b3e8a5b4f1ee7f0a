// Built once for each instruction set, with FUSEDSTEP_FACTORED as its name: a factored rule -> walker.
#include "exchanged.h"
#include "walk.h"

namespace fusedstep {
namespace {

template <bool Momentum, class T>
Walk find(const Launch& launch) {
  if (launch.exchange.sums != nullptr)
    return launch.vectors ? walk_exchanged<ExchangedVector<T, Momentum>>
                          : walk_exchanged<ExchangedMatrix<T, Momentum>>;
  return launch.vectors ? walk_factored<VectorTensor<T, Momentum>>
                        : walk_factored<MatrixTensor<T, Momentum>>;
}

}  // namespace

Walk FUSEDSTEP_FACTORED(const Launch& launch, bool momentum) {
  if (momentum) return launch.wide ? find<true, double>(launch) : find<true, float>(launch);
  return launch.wide ? find<false, double>(launch) : find<false, float>(launch);
}

}  // namespace fusedstep
