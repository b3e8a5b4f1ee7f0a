// Built once for each instruction set, with FUSEDSTEP_LEVEL as its name: (rule, compute type) ->
// walker.
#include "walk.h"

#include "exchanged.h"

namespace fusedstep {
namespace {

template <int Rule, class T>
void elementwise(const Launch& launch, const Entry& entry, char*) {
  using Own = RuleOf<Rule, T>;
  walk_elementwise<typename Own::type, T, Own::kStates>(launch, entry);
}

template <class T, int... Rules>
Walk find_elementwise(int64_t rule, RuleList<Rules...>) {
  Walk found = nullptr;
  ((rule == Rules ? void(found = elementwise<Rules, T>) : void()), ...);
  return found;
}

template <bool Momentum, class T>
Walk factored(const Launch& launch) {
  if (launch.exchange.sums != nullptr)
    return launch.vectors ? walk_exchanged<ExchangedVector<T, Momentum>>
                          : walk_exchanged<ExchangedMatrix<T, Momentum>>;
  return launch.vectors ? walk_factored<VectorTensor<T, Momentum>>
                        : walk_factored<MatrixTensor<T, Momentum>>;
}

template <class T>
Walk find(const Launch& launch) {
  const RuleFacts& rule = kRules[launch.rule];
  if (!rule.factored) return find_elementwise<T>(launch.rule, ElementwiseRules());
  return rule.states > 0 ? factored<true, T>(launch) : factored<false, T>(launch);
}

}  // namespace

Walk FUSEDSTEP_LEVEL(const Launch& launch) {
  return launch.wide ? find<double>(launch) : find<float>(launch);
}

}  // namespace fusedstep
