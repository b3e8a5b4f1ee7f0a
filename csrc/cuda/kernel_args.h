// What every kernel receives by value: where a bucket's tables, work list and scratch are.
#pragma once

#include <cstdint>

#include "../plan.h"
#include "../rules/layout.h"
#include "cut.h"

namespace fusedstep::cuda {

// Whether the code of storage is a dtype. The host checks codes once, when it makes a bucket; kernels
// do not check.
constexpr bool is_dtype(int code) {
  return code == kFloat32 || code == kBfloat16 || code == kFloat16 || code == kFloat64;
}

// How many numbers of scalars a launch takes by value: 8 rows of Adafactor's, so mostly all. Every
// launch copies them, used or not, so there is no room for more.
constexpr int kValues = 128;

struct KernelArgs {
  const int64_t* table;          // a row for each tensor, see csrc/plan.h
  const int64_t* scalar_row_of;  // each tensor's row of scalars
  const double* scalars;         // rows, see csrc/plan.h. Null: in `values`
  const double* controls;        // inverse gradient scale, found_inf
  const int32_t* entries;        // of the work list: pairs (tensor, unit)
  const Cut* cuts;
  void* partials;  // sums of units, in the compute type
  double* sums;    // other sums
  int32_t fields, row_length;
  int32_t vectors;            // 1: tensors are vectors, 0: matrices
  int32_t dtypes[kMaxSlots];  // how slots are stored: codes of csrc/rules/layout.h
  // Only if processes add up sums between the stages of a step, see exchange.cuh.
  double* exchange;
  OfTensor* of_tensors;
  // Only for the norm of the gradients: how many elements each has.
  const int64_t* elements;
  // Only if slots are stored in other ways than in a dtype: where companions are in a row of the
  // table, or 0, and a NoiseRow for each tensor, or null.
  int32_t companions[kMaxSlots];
  const int64_t* noise;
  double values[kValues];
};
static_assert(sizeof(KernelArgs) <= 4096, "what a kernel takes with every driver and device");

}  // namespace fusedstep::cuda
