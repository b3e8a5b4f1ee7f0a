// Lists the kernels for rules without sums.
#include "elementwise.cuh"
#include "instances.h"

namespace fusedstep::cuda {
namespace {

template <int Rule, int P, int G, int S, bool InDouble>
Kernel instance() {
  return {elementwise<Rule, P, G, S, InDouble>, kElementwiseThreads, 0};
}

// The dtype of the states, or kNone for a rule without states.
template <int Rule, int S>
constexpr int kOfStates = RuleOf<Rule, float>::kStates > 0 ? S : int(kNone);

template <int Rule>
bool are(const int32_t* dtypes, int p, int g, int s) {
  bool same = dtypes[ElementwiseRow::kP] == p && dtypes[ElementwiseRow::kG] == g;
  for (int k = 0; k < RuleOf<Rule, float>::kStates; ++k)
    same = same && dtypes[ElementwiseRow::kStates + k] == s;
  return same;
}

// The kernel for the bucket's dtypes if the rule lists them, else the kernel for any dtypes.
template <int Rule, int... P, int... G, int... S>
Kernel of_dtypes(bool in_double, const int32_t* dtypes, DtypesList<Dtypes<P, G, S>...>) {
  constexpr int kAnyStates = kOfStates<Rule, kAny>;
  if (in_double) return instance<Rule, kAny, kAny, kAnyStates, true>();
  Kernel found = instance<Rule, kAny, kAny, kAnyStates, false>();
  ((are<Rule>(dtypes, P, G, S) ? void(found = instance<Rule, P, G, kOfStates<Rule, S>, false>())
                               : void()),
   ...);
  return found;
}

template <int... Rules>
Kernel of_rule(int rule, bool in_double, const int32_t* dtypes, RuleList<Rules...>) {
  Kernel found;
  ((rule == Rules
        ? void(found = of_dtypes<Rules>(in_double, dtypes, typename RuleOf<Rules, float>::dtypes()))
        : void()),
   ...);
  return found;
}

}  // namespace

Kernel elementwise_kernel(int rule, bool in_double, const int32_t* dtypes) {
  return of_rule(rule, in_double, dtypes, ElementwiseRules());
}

}  // namespace fusedstep::cuda
