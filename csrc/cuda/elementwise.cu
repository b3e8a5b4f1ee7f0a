// Which kernels exist for rules without sums.
#include "elementwise.cuh"
#include "instances.h"

namespace fusedstep::cuda {
namespace {

template <int Rule, int P, int G, int S, bool Wide>
Kernel instance() {
  return {elementwise<Rule, P, G, S, Wide>, kElementwiseThreads, 0};
}

template <int Rule>
Kernel of_dtypes(bool wide, const int32_t* dtypes) {
  if (wide) return instance<Rule, kAny, kAny, kAny, true>();
  const int p = dtypes[0], g = dtypes[1], s = dtypes[2];
  for (int k = 3; k < 2 + RuleOf<Rule, float>::kStates; ++k)
    if (dtypes[k] != s) return instance<Rule, kAny, kAny, kAny, false>();
  if (p == kFloat32 && g == kFloat32 && s == kFloat32)
    return instance<Rule, kFloat32, kFloat32, kFloat32, false>();
  if (p == kBfloat16 && g == kBfloat16 && s == kBfloat16)
    return instance<Rule, kBfloat16, kBfloat16, kBfloat16, false>();
  if (p == kBfloat16 && g == kBfloat16 && s == kFloat32)
    return instance<Rule, kBfloat16, kBfloat16, kFloat32, false>();
  return instance<Rule, kAny, kAny, kAny, false>();
}

Kernel of_sum(bool wide, const int32_t* dtypes) {
  if (wide) return instance<kAccumulate, kAny, kAny, kNone, true>();
  const int p = dtypes[0], g = dtypes[1];
  if (p == kFloat32 && g == kFloat32) return instance<kAccumulate, kFloat32, kFloat32, kNone, false>();
  if (p == kFloat32 && g == kBfloat16)
    return instance<kAccumulate, kFloat32, kBfloat16, kNone, false>();
  return instance<kAccumulate, kAny, kAny, kNone, false>();
}

}  // namespace

Kernel elementwise_kernel(int rule, bool wide, const int32_t* dtypes) {
  switch (rule) {
    case kAdamw:
      return of_dtypes<kAdamw>(wide, dtypes);
    case kAdamwAmsgrad:
      return of_dtypes<kAdamwAmsgrad>(wide, dtypes);
    case kAdamwDecayLast:
      return of_dtypes<kAdamwDecayLast>(wide, dtypes);
    case kAccumulate:
      return of_sum(wide, dtypes);
  }
  return {};
}

}  // namespace fusedstep::cuda
