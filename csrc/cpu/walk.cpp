// Built once for each instruction set, with FUSEDSTEP_LEVEL as its name: (rule, compute type) ->
// walker.
#include "walk.h"

#include "factored.h"

namespace fusedstep {
namespace {

template <template <class> class Rule, int States, class T>
void elementwise(const Launch& launch, const Entry& entry, char*) {
  walk_elementwise<Rule<T>, T, States>(launch, entry);
}

template <bool Momentum, class T>
Walk factored(const Launch& launch) {
  return launch.vectors ? walk_factored<VectorTensor<T, Momentum>>
                        : walk_factored<MatrixTensor<T, Momentum>>;
}

// Every instance that exists is named here.
template <class T>
Walk find(const Launch& launch) {
  switch (launch.rule) {
    case kAdamw:
      return elementwise<Adamw, 2, T>;
    case kAdamwAmsgrad:
      return elementwise<AdamwAmsgrad, 3, T>;
    case kAdamwDecayLast:
      return elementwise<AdamwDecayLast, 2, T>;
    case kAccumulate:
      return elementwise<Accumulate, 0, T>;
    case kAdafactor:
      return factored<false, T>(launch);
    case kAdafactorMomentum:
      return factored<true, T>(launch);
  }
  return nullptr;
}

}  // namespace

Walk FUSEDSTEP_LEVEL(const Launch& launch) {
  return launch.wide ? find<double>(launch) : find<float>(launch);
}

}  // namespace fusedstep
