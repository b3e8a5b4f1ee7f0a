// Lists the kernels for factored rules.
#include "../rules.h"
#include "dispatch.cuh"
#include "instances.h"

namespace fusedstep::cuda {
namespace {

template <Unit kUnit, int P, int G, int M, int V, bool InDouble>
Kernel instance() {
  return {phase<kUnit, P, G, M, V, InDouble>, kThreads, int64_t(sizeof(Shared))};
}

// Kernels for one dtype need aligned tensors, and row moments in float32 or the gradient's dtype.
// Others take any.

// The dtypes of parameter, gradient and momentum (kNone without it) that the second read has kernels
// for: those of python/fusedstep/rules/spec.py, LARGE_MODELS, as a test compares.
using UpdateDtypes =
    DtypesList<Dtypes<kFloat32, kFloat32, kNone>, Dtypes<kFloat32, kFloat32, kFloat32>,
               Dtypes<kBfloat16, kBfloat16, kNone>, Dtypes<kBfloat16, kBfloat16, kBfloat16>,
               Dtypes<kBfloat16, kBfloat16, kFloat32>, Dtypes<kFloat32, kBfloat16, kNone>,
               Dtypes<kFloat32, kBfloat16, kFloat32>, Dtypes<kFloat16, kFloat16, kNone>,
               Dtypes<kFloat16, kFloat16, kFloat16>, Dtypes<kFloat16, kFloat16, kFloat32>>;

// Units that read only the gradient. `of_parameter` is for those that read only the parameter.
template <Unit kUnit, int V, bool InDouble>
Kernel of_gradient(int dtype) {
  if constexpr (!InDouble) {
    if (dtype == kFloat32) return instance<kUnit, kNone, kFloat32, kNone, V, false>();
    if (dtype == kBfloat16) return instance<kUnit, kNone, kBfloat16, kNone, V, false>();
    if (dtype == kFloat16) return instance<kUnit, kNone, kFloat16, kNone, V, false>();
  }
  return instance<kUnit, kNone, kAny, kNone, V, InDouble>();
}

// The first read of rows that are so long that few kernels can hold them.
template <int V>
Kernel of_long_rows(int gradient) {
  if (gradient == kBfloat16) return instance<Unit::kStatistics, kNone, kBfloat16, kNone, V, false>();
  if (gradient == kFloat16) return instance<Unit::kStatistics, kNone, kFloat16, kNone, V, false>();
  return {};
}

template <bool InDouble>
Kernel of_parameter(bool aligned, int dtype) {
  if constexpr (!InDouble) {
    const int own = aligned ? dtype : int(kAny);
    if (own == kFloat32) return instance<Unit::kSquares, kFloat32, kNone, kNone, 1, false>();
    // Noise is for stores.
    if (own == kBfloat16 || own == kNoisyBfloat16)
      return instance<Unit::kSquares, kBfloat16, kNone, kNone, 1, false>();
    if (own == kFloat16) return instance<Unit::kSquares, kFloat16, kNone, kNone, 1, false>();
    if (own == kRest16) return instance<Unit::kSquares, kRest16, kNone, kNone, 1, false>();
    if (own == kRest8) return instance<Unit::kSquares, kRest8, kNone, kNone, 1, false>();
    if (!is_dtype(dtype)) return instance<Unit::kSquares, kAnyStored, kNone, kNone, 1, false>();
  }
  return instance<Unit::kSquares, kAny, kNone, kNone, 1, InDouble>();
}

// Kernels of the second read for dtypes.
template <bool InDouble, int... P, int... G, int... M>
Kernel of_dtypes(int momentum, bool aligned, const int32_t* dtypes, DtypesList<Dtypes<P, G, M>...>) {
  constexpr Unit kUnit = Unit::kUpdate;
  Kernel found = momentum == kNone ? instance<kUnit, kAny, kAny, kNone, 1, InDouble>()
                                   : instance<kUnit, kAny, kAny, kAny, 1, InDouble>();
  if constexpr (!InDouble) {
    ((aligned && dtypes[0] == P && dtypes[1] == G && momentum == M
          ? void(found = instance<kUnit, P, G, M, 1, false>())
          : void()),
     ...);
  }
  return found;
}

// Kernels of the second read if the parameter or the momentum is not stored in a dtype. A float64
// parameter is.
template <bool InDouble>
Kernel of_stored(int momentum, bool aligned, const int32_t* dtypes) {
  constexpr Unit kUnit = Unit::kUpdate;
  if (momentum >= kBentInt8) return instance<kUnit, kAnyStored, kAny, kBent, 1, InDouble>();
  if (momentum != kNone) return instance<kUnit, kAnyStored, kAny, kAnyStored, 1, InDouble>();
  if constexpr (!InDouble) {
    if (aligned && dtypes[1] == kBfloat16) {
      if (dtypes[0] == kNoisyBfloat16)
        return instance<kUnit, kNoisyBfloat16, kBfloat16, kNone, 1, false>();
      if (dtypes[0] == kRest16) return instance<kUnit, kRest16, kBfloat16, kNone, 1, false>();
      if (dtypes[0] == kRest8) return instance<kUnit, kRest8, kBfloat16, kNone, 1, false>();
    }
    return instance<kUnit, kAnyStored, kAny, kNone, 1, false>();
  }
  return {};
}

// Units that check dtypes at run time: they do little work, or work on small tensors.
template <Unit kUnit, bool InDouble>
Kernel of_any() {
  return instance<kUnit, kNone, kNone, kNone, 1, InDouble>();
}

// Those of them that read or write the parameter and the momentum, which are stored in these ways.
template <Unit kUnit, bool InDouble>
Kernel of_any_with(int parameter) {
  if constexpr (!InDouble)
    if (!is_dtype(parameter)) return instance<kUnit, kAnyStored, kNone, kNone, 1, false>();
  return of_any<kUnit, InDouble>();
}

template <Unit kUnit, bool InDouble>
Kernel of_any_with(int parameter, int momentum) {
  if (momentum == kNone) return of_any_with<kUnit, InDouble>(parameter);
  if (is_dtype(parameter) && is_dtype(momentum))
    return instance<kUnit, kNone, kNone, kAny, 1, InDouble>();
  return instance<kUnit, kAnyStored, kNone, kAnyStored, 1, InDouble>();
}

template <bool InDouble>
Kernel find(Unit unit, int momentum_slot, int width, bool aligned, const int32_t* dtypes) {
  const bool momentum = momentum_slot > 0;
  const bool usual = aligned && (dtypes[2] == kFloat32 || dtypes[2] == dtypes[1]);
  const int gradient = usual ? dtypes[1] : int(kAny);
  const int parameter = dtypes[0], own = momentum ? dtypes[momentum_slot] : int(kNone);
  switch (unit) {
    case Unit::kRowSums:
      return of_gradient<Unit::kRowSums, 1, InDouble>(gradient);
    case Unit::kRows:
      return of_any<Unit::kRows, InDouble>();
    case Unit::kStatistics:
      if constexpr (!InDouble) {
        if (width > 24 * kThreads) return of_long_rows<4>(gradient);
        if (width > 16 * kThreads) return of_long_rows<3>(gradient);
        if (width > 8 * kThreads) return of_gradient<Unit::kStatistics, 2, InDouble>(gradient);
      }
      return of_gradient<Unit::kStatistics, 1, InDouble>(gradient);
    case Unit::kColumnSums:
      return of_gradient<Unit::kColumnSums, 1, InDouble>(gradient);
    case Unit::kTiny:
      return of_any_with<Unit::kTiny, InDouble>(parameter);
    case Unit::kVector:
      return of_any_with<Unit::kVector, InDouble>(parameter);
    case Unit::kSquares:
      return of_parameter<InDouble>(aligned, parameter);
    case Unit::kColumns:
      return of_any<Unit::kColumns, InDouble>();
    case Unit::kSumU2:
      return of_gradient<Unit::kSumU2, 1, InDouble>(gradient);
    case Unit::kFinish:
      return of_any<Unit::kFinish, InDouble>();
    case Unit::kUpdate:
      if (!is_dtype(parameter) || (momentum && !is_dtype(own)))
        return of_stored<InDouble>(own, aligned, dtypes);
      return of_dtypes<InDouble>(own, aligned, dtypes, UpdateDtypes());
    case Unit::kTinyUpdate:
      return of_any_with<Unit::kTinyUpdate, InDouble>(parameter, own);
    case Unit::kVectorUpdate:
      return of_any_with<Unit::kVectorUpdate, InDouble>(parameter, own);
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

Kernel phase_kernel(Unit unit, int momentum_slot, bool in_double, int width, bool aligned,
                    const int32_t* dtypes) {
  return in_double ? find<true>(unit, momentum_slot, width, aligned, dtypes)
                   : find<false>(unit, momentum_slot, width, aligned, dtypes);
}

}  // namespace fusedstep::cuda
