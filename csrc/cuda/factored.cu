// Lists the kernels for factored rules.
#include "dispatch.cuh"
#include "instances.h"

namespace fusedstep::cuda {
namespace {

template <Unit kUnit, int P, int G, int M, int V, bool InDouble>
Kernel instance() {
  return {phase<kUnit, P, G, M, V, InDouble>, kThreads, int64_t(sizeof(Shared))};
}

// Kernels for one dtype need aligned tensors and row moments of 32 bits at most. Others take any.

// Units that read only the gradient. `of_parameter` is for those that read only the parameter.
template <Unit kUnit, int V, bool InDouble>
Kernel of_gradient(int dtype) {
  if constexpr (!InDouble) {
    if (dtype == kFloat32) return instance<kUnit, kNone, kFloat32, kNone, V, false>();
    if (dtype == kBfloat16) return instance<kUnit, kNone, kBfloat16, kNone, V, false>();
  }
  return instance<kUnit, kNone, kAny, kNone, V, InDouble>();
}

template <bool InDouble>
Kernel of_parameter(int dtype) {
  if constexpr (!InDouble) {
    if (dtype == kFloat32) return instance<Unit::kSquares, kFloat32, kNone, kNone, 1, false>();
    if (dtype == kBfloat16) return instance<Unit::kSquares, kBfloat16, kNone, kNone, 1, false>();
  }
  return instance<Unit::kSquares, kAny, kNone, kNone, 1, InDouble>();
}

// Calls `found` with the dtypes of parameter, gradient and momentum that kernels were built for.
template <bool InDouble, class Found>
Kernel of_all(bool momentum, bool aligned, const int32_t* dtypes, Found found) {
  using Any = std::integral_constant<int, kAny>;
  using None = std::integral_constant<int, kNone>;
  using Float32 = std::integral_constant<int, kFloat32>;
  using Bfloat16 = std::integral_constant<int, kBfloat16>;
  const int p = dtypes[0], g = dtypes[1];
  if constexpr (!InDouble) {
    if (aligned && (!momentum || dtypes[MatrixRow::kMomentum] == kFloat32)) {
      if (p == kFloat32 && g == kFloat32)
        return momentum ? found(Float32(), Float32(), Float32()) : found(Float32(), Float32(), None());
      if (p == kBfloat16 && g == kBfloat16)
        return momentum ? found(Bfloat16(), Bfloat16(), Float32())
                        : found(Bfloat16(), Bfloat16(), None());
    }
  }
  return momentum ? found(Any(), Any(), Any()) : found(Any(), Any(), None());
}

// Units that check dtypes at run time: they do little work, or work on small tensors.
template <Unit kUnit, bool InDouble>
Kernel of_any() {
  return instance<kUnit, kNone, kNone, kNone, 1, InDouble>();
}

template <Unit kUnit, bool InDouble>
Kernel of_any_with(bool momentum) {
  return momentum ? instance<kUnit, kNone, kNone, kAny, 1, InDouble>() : of_any<kUnit, InDouble>();
}

template <bool InDouble>
Kernel find(Unit unit, bool momentum, int width, bool aligned, const int32_t* dtypes) {
  const bool usual = aligned && dtypes[2] != kFloat64;
  const int gradient = usual ? dtypes[1] : int(kAny), parameter = aligned ? dtypes[0] : int(kAny);
  switch (unit) {
    case Unit::kRowSums:
      return of_gradient<Unit::kRowSums, 1, InDouble>(gradient);
    case Unit::kRows:
      return of_any<Unit::kRows, InDouble>();
    case Unit::kStatistics:
      if constexpr (!InDouble)
        if (width > 8 * kThreads) return of_gradient<Unit::kStatistics, 2, InDouble>(gradient);
      return of_gradient<Unit::kStatistics, 1, InDouble>(gradient);
    case Unit::kColumnSums:
      return of_gradient<Unit::kColumnSums, 1, InDouble>(gradient);
    case Unit::kTiny:
      return of_any<Unit::kTiny, InDouble>();
    case Unit::kVector:
      return of_any<Unit::kVector, InDouble>();
    case Unit::kSquares:
      return of_parameter<InDouble>(parameter);
    case Unit::kColumns:
      return of_any<Unit::kColumns, InDouble>();
    case Unit::kSumU2:
      return of_gradient<Unit::kSumU2, 1, InDouble>(gradient);
    case Unit::kFinish:
      return of_any<Unit::kFinish, InDouble>();
    case Unit::kUpdate:
      return of_all<InDouble>(momentum, aligned, dtypes, [](auto p, auto g, auto m) {
        return instance<Unit::kUpdate, p, g, m, 1, InDouble>();
      });
    case Unit::kTinyUpdate:
      return of_any_with<Unit::kTinyUpdate, InDouble>(momentum);
    case Unit::kVectorUpdate:
      return of_any_with<Unit::kVectorUpdate, InDouble>(momentum);
    case Unit::kStoreRms:
      return of_any<Unit::kStoreRms, InDouble>();
    case Unit::kPackRows:
      return of_any<Unit::kPackRows, InDouble>();
    case Unit::kRowsExchanged:
      return of_any<Unit::kRowsExchanged, InDouble>();
    case Unit::kPackColumns:
      return of_any<Unit::kPackColumns, InDouble>();
    case Unit::kPackSquares:
      return of_any<Unit::kPackSquares, InDouble>();
    case Unit::kColumnsExchanged:
      return of_any<Unit::kColumnsExchanged, InDouble>();
    case Unit::kTotalU2:
      return of_any<Unit::kTotalU2, InDouble>();
    case Unit::kFinishExchanged:
      return of_any<Unit::kFinishExchanged, InDouble>();
    default:
      return {};
  }
}

}  // namespace

Kernel phase_kernel(Unit unit, bool momentum, bool in_double, int width, bool aligned,
                    const int32_t* dtypes) {
  return in_double ? find<true>(unit, momentum, width, aligned, dtypes)
                   : find<false>(unit, momentum, width, aligned, dtypes);
}

}  // namespace fusedstep::cuda
