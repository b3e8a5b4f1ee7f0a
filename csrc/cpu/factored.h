// What the Adafactor family does with every tensor, matrices or vector.
#pragma once

#include "../rules/adafactor.h"
#include "elementwise.h"
#include "sums.h"
#include "work_list.h"

namespace fusedstep {
namespace {

// What both kinds of tensor share: the rule, and the step size from the sums.
template <class T, bool Momentum>
struct FactoredTensor {
  const LaunchArgs& launch;
  const int64_t number;   // of the tensor in the launch
  const int64_t* tensor;  // the row of the table
  Adafactor<T> rule;
  Adafactor<double> tensor_rule;
  T grad_scale;
  double* rms;  // where to store rms(p) as a T, or null
  int64_t elements;

  NoiseKeys keys;

  FactoredTensor(const LaunchArgs& launch, int64_t t)
      : launch(launch),
        number(t),
        tensor(launch.table + t * launch.fields),
        rule(rule_of<Adafactor<T>, T>(launch, t)),
        tensor_rule(rule_of<Adafactor<double>, double>(launch, t)),
        grad_scale(gradient_scale<T>(launch, t)),
        rms(reinterpret_cast<double*>(size(MatrixRow::kRms))) {
    static_assert(MatrixRow::kRms == VectorRow::kRms);
    if (launch.noise != nullptr) keys = noise_keys(launch, t);
  }

  int64_t size(int place) const {
    return tensor[factored_slots(launch.fields, launch.vectors) + place];
  }
  Stored slot(int k) const { return stored_at(launch, tensor, k); }

  bool scaled() const { return tensor_rule.scaled > 0.0; }
  bool wants_p2() const { return scaled() || rms != nullptr; }
  // Read 1 sums p^2 if the step depends on it. If not, read 2 does if rms(p) is wanted.
  bool sums_late() const { return !scaled() && rms != nullptr; }

  void make_step(double p, double u, double* step) const {
    const double n = double(elements);
    const double rms_p = scaled() ? tensor_rule.rms(p, n) : 0.0;
    tensor_rule.finish(rms_p, tensor_rule.rms(u, n), step[0], step[1]);
  }

  void store_rms(double p) const {
    if (rms == nullptr) return;
    const T value = T(tensor_rule.rms(p, double(elements)));
    std::memcpy(rms, &value, sizeof(T));
  }
};

// Runs one entry on its tensor.
template <class Tensor>
void walk_factored(const LaunchArgs& launch, const Entry& entry, char* thread_scratch) {
  const Tensor tensor(launch, entry.tensor, thread_scratch);
  switch (entry.kind) {
    case kWhole: {
      double p, u, step[2];
      tensor.read_piece(0, p, u);
      tensor.make_step(p, u, step);
      const bool has_next = (&entry)[1].kind == kWhole && (&entry)[1].tensor == entry.tensor + 1;
      const Stored next = stored_at(launch, tensor.tensor + has_next * launch.fields, MatrixRow::kG);
      tensor.update_piece(0, step, p, has_next ? &next : nullptr);
      return tensor.store_rms(p);
    }
    case kStatistics:
      return tensor.statistics(entry.index);
    case kColumns:
      return tensor.columns(entry.index);
    case kSumU2:
      return tensor.block_u2(entry.index);
    case kStepSize:
      return tensor.set_step();
    case kUpdate:
      return tensor.update(entry.index);
    case kStoreRms:
      return tensor.store_rms(sum_in_order(tensor.sums.p, tensor.cut.pieces));
  }
}

}  // namespace
}  // namespace fusedstep
