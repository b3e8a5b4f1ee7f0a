// Picks the walker of a rule and compute type. Built once for each instruction set, with
// FUSEDSTEP_LEVEL as the function's name. dispatch_factored.cpp has the factored rules.
#include "dispatch.h"

#include "elementwise.h"

namespace fusedstep {

Walk FUSEDSTEP_FACTORED(const LaunchArgs& launch, bool momentum);

namespace {

template <class T, int... Rules>
Walk find_elementwise(int64_t rule, RuleList<Rules...>) {
  Walk found = nullptr;
  ((rule == Rules ? void(found = walk_elementwise<Rules, T>) : void()), ...);
  return found;
}

}  // namespace

Walk FUSEDSTEP_LEVEL(const LaunchArgs& launch) {
  const RuleFacts& rule = kRules[launch.rule];
  if (rule.factored) return FUSEDSTEP_FACTORED(launch, rule.states > 0);
  return launch.in_float64 ? find_elementwise<double>(launch.rule, ElementwiseRules())
                           : find_elementwise<float>(launch.rule, ElementwiseRules());
}

}  // namespace fusedstep
