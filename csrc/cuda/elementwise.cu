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
  for (int k = 0; k < RuleOf<Rule, float>::kStates; ++k) {
    const int wanted = s != kBent ? s : k == 0 ? kBentInt8 : kBentUint8;
    same = same && dtypes[ElementwiseRow::kStates + k] == wanted;
  }
  return same;
}

// The kernel for how the bucket's slots are stored if the rule lists it, else the kernel for any way.
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

// The same if some slot is not stored in a dtype.
template <int Rule, int... P, int... G, int... S>
Kernel of_stored(bool in_double, const int32_t* dtypes, DtypesList<Dtypes<P, G, S>...>) {
  if constexpr (!RuleOf<Rule, float>::kOnlyDtypes) {
    constexpr int kAnyStates = kOfStates<Rule, kAnyStored>;
    if (in_double) return instance<Rule, kAny, kAny, kAnyStates, true>();
    Kernel found = instance<Rule, kAnyStored, kAny, kAnyStates, false>();
    ((are<Rule>(dtypes, P, G, S) ? void(found = instance<Rule, P, G, S, false>()) : void()), ...);
    // What is listed for 16 bits also occurs with states of 8 bits.
    if constexpr (sizeof...(P) > 0) {
      if (are<Rule>(dtypes, kBfloat16, kBfloat16, kBent))
        found = instance<Rule, kBfloat16, kBfloat16, kBent, false>();
      if (are<Rule>(dtypes, kNoisyBfloat16, kBfloat16, kBent))
        found = instance<Rule, kNoisyBfloat16, kBfloat16, kBent, false>();
      if (are<Rule>(dtypes, kRest8, kBfloat16, kBent))
        found = instance<Rule, kRest8, kBfloat16, kBent, false>();
    }
    return found;
  }
  return {};
}

template <int Rule>
Kernel of_bucket(bool in_double, const int32_t* dtypes) {
  using Listed = RuleOf<Rule, float>;
  bool is_usual = true;
  for (int k = 0; k < ElementwiseRow::kStates + Listed::kStates; ++k)
    is_usual = is_usual && is_dtype(dtypes[k]);
  return is_usual ? of_dtypes<Rule>(in_double, dtypes, typename Listed::dtypes())
                  : of_stored<Rule>(in_double, dtypes, typename Listed::stored());
}

template <int... Rules>
Kernel of_rule(int rule, bool in_double, const int32_t* dtypes, RuleList<Rules...>) {
  Kernel found;
  ((rule == Rules ? void(found = of_bucket<Rules>(in_double, dtypes)) : void()), ...);
  return found;
}

}  // namespace

Kernel elementwise_kernel(int rule, bool in_double, const int32_t* dtypes) {
  return of_rule(rule, in_double, dtypes, ElementwiseRules());
}

}  // namespace fusedstep::cuda
