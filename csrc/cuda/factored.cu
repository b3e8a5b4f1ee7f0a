// Lists the kernels for factored rules.
#include "dispatch.cuh"
#include "instances.h"

namespace fusedstep::cuda {
namespace {

template <Unit kUnit, int P, int G, int M, int V, bool Wide>
Kernel instance() {
  return {phase<kUnit, P, G, M, V, Wide>, kThreads, int64_t(sizeof(Shared))};
}

// Kernels for one dtype need aligned tensors and row moments of 32 bits at most. Others take any.

// Units that read only the gradient. `of_parameter` is for those that read only the parameter.
template <Unit kUnit, int V, bool Wide>
Kernel of_gradient(int dtype) {
  if constexpr (!Wide) {
    if (dtype == kFloat32) return instance<kUnit, kNone, kFloat32, kNone, V, false>();
    if (dtype == kBfloat16) return instance<kUnit, kNone, kBfloat16, kNone, V, false>();
  }
  return instance<kUnit, kNone, kAny, kNone, V, Wide>();
}

template <bool Wide>
Kernel of_parameter(int dtype) {
  if constexpr (!Wide) {
    if (dtype == kFloat32) return instance<Unit::kSquares, kFloat32, kNone, kNone, 1, false>();
    if (dtype == kBfloat16) return instance<Unit::kSquares, kBfloat16, kNone, kNone, 1, false>();
  }
  return instance<Unit::kSquares, kAny, kNone, kNone, 1, Wide>();
}

// Calls `found` with the dtypes of parameter, gradient and momentum that kernels were built for.
template <bool Wide, class Found>
Kernel of_all(bool momentum, bool aligned, const int32_t* dtypes, Found found) {
  using Any = std::integral_constant<int, kAny>;
  using None = std::integral_constant<int, kNone>;
  using Float32 = std::integral_constant<int, kFloat32>;
  using Bfloat16 = std::integral_constant<int, kBfloat16>;
  const int p = dtypes[0], g = dtypes[1];
  if constexpr (!Wide) {
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
template <Unit kUnit, bool Wide>
Kernel of_any() {
  return instance<kUnit, kNone, kNone, kNone, 1, Wide>();
}

template <Unit kUnit, bool Wide>
Kernel of_any_with(bool momentum) {
  return momentum ? instance<kUnit, kNone, kNone, kAny, 1, Wide>() : of_any<kUnit, Wide>();
}

template <bool Wide>
Kernel find(Unit unit, bool momentum, int width, bool aligned, const int32_t* dtypes) {
  const bool usual = aligned && dtypes[2] != kFloat64;
  const int gradient = usual ? dtypes[1] : int(kAny), parameter = aligned ? dtypes[0] : int(kAny);
  switch (unit) {
    case Unit::kRowSums:
      return of_gradient<Unit::kRowSums, 1, Wide>(gradient);
    case Unit::kRows:
      return of_any<Unit::kRows, Wide>();
    case Unit::kStatistics:
      if constexpr (!Wide)
        if (width > 8 * kThreads) return of_gradient<Unit::kStatistics, 2, Wide>(gradient);
      return of_gradient<Unit::kStatistics, 1, Wide>(gradient);
    case Unit::kColumnSums:
      return of_gradient<Unit::kColumnSums, 1, Wide>(gradient);
    case Unit::kTiny:
      return of_any<Unit::kTiny, Wide>();
    case Unit::kVector:
      return of_any<Unit::kVector, Wide>();
    case Unit::kSquares:
      return of_parameter<Wide>(parameter);
    case Unit::kColumns:
      return of_any<Unit::kColumns, Wide>();
    case Unit::kSumU2:
      return of_gradient<Unit::kSumU2, 1, Wide>(gradient);
    case Unit::kFinish:
      return of_any<Unit::kFinish, Wide>();
    case Unit::kUpdate:
      return of_all<Wide>(momentum, aligned, dtypes, [](auto p, auto g, auto m) {
        return instance<Unit::kUpdate, p, g, m, 1, Wide>();
      });
    case Unit::kTinyUpdate:
      return of_any_with<Unit::kTinyUpdate, Wide>(momentum);
    case Unit::kVectorUpdate:
      return of_any_with<Unit::kVectorUpdate, Wide>(momentum);
    case Unit::kStoreRms:
      return of_any<Unit::kStoreRms, Wide>();
    case Unit::kPackColumns:
      return of_any<Unit::kPackColumns, Wide>();
    case Unit::kPackSquares:
      return of_any<Unit::kPackSquares, Wide>();
    case Unit::kColumnsExchanged:
      return of_any<Unit::kColumnsExchanged, Wide>();
    case Unit::kTotalU2:
      return of_any<Unit::kTotalU2, Wide>();
    case Unit::kFinishExchanged:
      return of_any<Unit::kFinishExchanged, Wide>();
    default:
      return {};
  }
}

template <int D>
Kernel waves_of(bool momentum) {
  if (momentum) return {waves<D, kFloat32>, kThreads, int64_t(sizeof(Shared))};
  return {waves<D, kNone>, kThreads, int64_t(sizeof(Shared))};
}

}  // namespace

Kernel phase_kernel(Unit unit, bool momentum, bool in_double, int width, bool aligned,
                    const int32_t* dtypes) {
  return in_double ? find<true>(unit, momentum, width, aligned, dtypes)
                   : find<false>(unit, momentum, width, aligned, dtypes);
}

Kernel waves_kernel(bool momentum, const int32_t* dtypes) {
  const int p = dtypes[0];
  const bool usual = dtypes[1] == p && dtypes[2] != kFloat64 &&
                     (!momentum || dtypes[MatrixRow::kMomentum] == kFloat32);
  if (usual && p == kFloat32) return waves_of<kFloat32>(momentum);
  if (usual && p == kBfloat16) return waves_of<kBfloat16>(momentum);
  return {};
}

}  // namespace fusedstep::cuda
