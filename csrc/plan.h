// What a launch receives: plain addresses and sizes. python/fusedstep/plan/bucket.py lays them out.
#pragma once

#include <cstdint>

namespace fusedstep {

constexpr int kMaxSlots = 6;  // of a rule, without companions

// What an exchange needs of each tensor: OF_TENSOR of python/fusedstep/plan/launcher.py.
struct OfTensor {
  double sum_u2;                // over the part here, later over the whole tensor
  double rows, cols, elements;  // of a whole matrix, and of the whole tensor
  double capped;                // 1: a cap may change u, so sum_u2 is first of the rows here
  double start, length;         // of a flat piece: its first element, and how many it has
};

// An exchanged bucket has parts of tensors. It is launched in stages, each a range of rounds. Between
// stages, the host adds up sums over processes. Other buckets have one stage and no such memory.
struct Exchange {
  double* sums = nullptr;  // what read 1 leaves; tensor t's start at sums_of[t]
  const int64_t* sums_of = nullptr;
  OfTensor* of_tensors = nullptr;
  int64_t split_columns = 0;  // 1: a row's sum is known only after the first exchange
  int64_t flat = 0;           // 1: runs of matrices, whose sizes in the table are those of the whole
};

// One bucket of tensors that share a rule, a device and how all slots are stored.
//
// `table` has a row of `fields` numbers per tensor: the addresses of its slots and of their companions
// (python/fusedstep/plan/storage.py), then its sizes.
//   elementwise   p g states...            | elements
//   matrices      p g row col states...    | address of rms(p) or 0, batch, rows, columns
//   vectors       p g v states...          | address of rms(p) or 0, elements
// If the address of g is 0, there is no gradient: the tensor is neither read nor written.
// `scalars` has rows of `row_length` float64 numbers: the gradient's sign, the rule's scalars, and the
// number of the step.
// `entries` are triples (kind of work, tensor, index). A thread takes a run of entries at once. A
// round is a range of runs; they may run in any order, after all runs of the round before.
struct LaunchArgs {
  int64_t rule = 0;
  int64_t in_float64 = 0;  // 1: compute in float64, 0: in float32
  int64_t vectors = 0;
  int64_t dtypes[kMaxSlots] = {};      // codes of storage: rules/layout.h
  int64_t companions[kMaxSlots] = {};  // where a slot's companion is in a row of the table, or 0
  const int64_t* noise = nullptr;      // a NoiseRow for each tensor, if some slot is rounded by noise
  const int64_t* table = nullptr;
  int64_t fields = 0;
  const int64_t* scalar_row_of = nullptr;
  const double* scalars = nullptr;
  int64_t row_length = 0;
  const int64_t* entries = nullptr;
  const int64_t* runs = nullptr;
  const int64_t* rounds = nullptr;
  int64_t first_round = 0, end_round = 0;  // of this stage
  Exchange exchange;
  char* scratch = nullptr;  // for sums of pieces; tensor t's start at scratch_of[t]
  const int64_t* scratch_of = nullptr;
  const int64_t* elements = nullptr;  // of each tensor, if only gradients are read
  char* thread_scratch = nullptr;     // thread_bytes for each thread
  int64_t thread_bytes = 0;
  double grad_scale = 1.0;
  int64_t threads = 1;
};

struct Entry {
  int64_t kind, tensor, index;
};

// The hash of the rules that the module was built from.
const char* fingerprint();

}  // namespace fusedstep
