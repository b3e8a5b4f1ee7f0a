// Looks up what every kernel needs: a rule's scalars, the gradient's scale, slots.
#pragma once

#include "any_stored.cuh"
#include "kernel_args.h"

namespace fusedstep::cuda {

// Kernels take their arguments as __grid_constant__, so that the address of `values` makes no copy.
__device__ __forceinline__ const double* scalars_of(const KernelArgs& args, int64_t tensor) {
  const double* rows = args.scalars != nullptr ? args.scalars : args.values;
  return rows + args.scalar_row_of[tensor] * args.row_length;
}

// The rule with its scalars, rounded once. The compiler drops loads of unused fields.
template <class Rule, class T>
__device__ __forceinline__ Rule rule_of(const double* scalars) {
  static_assert(sizeof(Rule) % sizeof(T) == 0, "a rule holds nothing but scalars");
  T field[sizeof(Rule) / sizeof(T)];
#pragma unroll
  for (int k = 0; k < int(sizeof(Rule) / sizeof(T)); ++k) field[k] = T(scalars[1 + k]);
  Rule rule;
  memcpy(&rule, field, sizeof(Rule));
  return rule;
}

// The factor of gradients: inverse loss scale times sign.
template <class T>
__device__ __forceinline__ T gradient_scale(const KernelArgs& args, const double* scalars) {
  return T(args.controls[0]) * T(scalars[0]);
}

template <int D>
__device__ __forceinline__ Slot<D> slot_of(const KernelArgs& args, const int64_t* table_row, int k) {
  if constexpr (kHasCompanion<D>) {
    const int beside = args.companions[k];
    char* companion = D == kAnyStored && beside == 0 ? nullptr : pointer<char>(table_row[beside]);
    return {pointer<char>(table_row[k]), companion, args.dtypes[k]};
  } else {
    return {pointer<char>(table_row[k]), D == kAny ? args.dtypes[k] : D};
  }
}

// Without a gradient in this step its cell is 0, and kernels leave the tensor alone.
__device__ __forceinline__ bool has_gradient(const int64_t* table_row) { return table_row[1] != 0; }

__device__ __forceinline__ bool found_inf(const KernelArgs& args) { return args.controls[1] != 0.0; }

}  // namespace fusedstep::cuda
