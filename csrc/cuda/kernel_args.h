// What every kernel receives, by value: where a bucket's tables, work list and scratch are.
#pragma once

#include <cstdint>

#include "../plan.h"
#include "../rules/layout.h"
#include "cut.h"

namespace fusedstep::cuda {

// Whether there is a dtype of this code. The host asks once, when it makes a bucket's work; kernels
// trust what they get.
constexpr bool is_dtype(int code) {
  return code == kFloat32 || code == kBfloat16 || code == kFloat16 || code == kFloat64;
}

struct KernelArgs {
  const int64_t* table;    // a row for each tensor, as csrc/plan.h has it
  const int64_t* row_of;   // of each tensor, its row of scalars
  const double* scalars;   // the gradient's sign, then the rule's
  const double* controls;  // inverse gradient scale, found_inf
  const int32_t* entries;  // of the work list: pairs (tensor, unit); see kWaveEntry for waves
  const Cut* cuts;
  void* partials;     // sums of units, of the type that is computed with
  double* sums;       // other sums
  int32_t* counters;  // of waves: tickets, then what was done
  int64_t count;      // entries
  int32_t fields, row_length;
  int32_t vectors;  // 1: tensors are vectors, 0: matrices
  int32_t dtypes[kMaxSlots];
  double* exchange;  // sums that the host may add up over processes, see exchange.cuh
  double* sum_u2;    // the same, a number for each tensor
};

}  // namespace fusedstep::cuda
