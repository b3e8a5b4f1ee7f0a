// A tensor of a factored rule as its units see it, and the work on a whole tensor.
#pragma once

#include "../rules/adafactor.h"
#include "rule.cuh"

namespace fusedstep::cuda {

// T is the compute type. Sums over many threads are float64, and so are the numbers made from them.
template <class T>
struct FactoredTensor {
  const KernelArgs& args;
  const int64_t index;
  const int64_t* table_row;
  const Cut& cut;
  const double* scalars;
  const int64_t* sizes;  // in the table's row, after the slots and their companions

  __device__ __forceinline__ FactoredTensor(const KernelArgs& args, int64_t tensor)
      : args(args),
        index(tensor),
        table_row(args.table + tensor * args.fields),
        cut(args.cuts[tensor]),
        scalars(scalars_of(args, tensor)),
        sizes(table_row + factored_slots(args.fields, args.vectors)) {}

  // Loaded at each use: kept scalars would take registers from the loops.
  __device__ __forceinline__ Adafactor<T> rule() const { return rule_of<Adafactor<T>, T>(scalars); }

  template <int D>
  __device__ __forceinline__ Slot<D> slot(int k) const {
    return slot_of<D>(args, table_row, k);
  }
  __device__ __forceinline__ T gradient_scale() const { return cuda::gradient_scale<T>(args, scalars); }
  __device__ __forceinline__ int64_t batch() const { return sizes[MatrixRow::kBatch]; }
  __device__ __forceinline__ int64_t rows() const { return sizes[MatrixRow::kRows]; }
  __device__ __forceinline__ int64_t cols() const { return sizes[MatrixRow::kCols]; }
  __device__ __forceinline__ int64_t elements() const {
    return args.vectors ? sizes[VectorRow::kElements] : batch() * rows() * cols();
  }
  __device__ __forceinline__ double* sums(int64_t at) const { return args.sums + at; }
  __device__ __forceinline__ T* partials() const {
    return static_cast<T*>(args.partials) + cut.partials_at;
  }
  // The factors of a matrix's columns, which COLUMNS leaves to the second read.
  __device__ __forceinline__ T* col_factors(int64_t matrix) const {
    return partials() + cut.col_factors_at + matrix * cols();
  }

  // A place in the exchange buffer.
  __device__ __forceinline__ double* exchange(int64_t at) const {
    return args.exchange + cut.exchange_at + at;
  }

  // Whether the step depends on rms(p), so that the first read sums p^2.
  __device__ __forceinline__ bool scaled() const { return rule().scaled > T(0); }
  // Whether the second read sums p^2: rms(p) is wanted and the step does not need it.
  __device__ __forceinline__ bool sums_late() const { return sizes[MatrixRow::kRms] != 0 && !scaled(); }
  // Whether the first read sums p^2. Processes add it up before the second one.
  __device__ __forceinline__ bool sums_early() const {
    return scaled() || (args.exchange != nullptr && sizes[MatrixRow::kRms] != 0);
  }

  // Updates a second moment and returns its stored value.
  __device__ __forceinline__ T update_moment(const Slot<kAny>& slot, int64_t i, T mean_square) const {
    const T old = slot.template load_one<T>(i);
    const T moment = round_to_storage(slot.dtype, rule().second_moment(old, mean_square));
    slot.store_one(i, moment);
    return moment;
  }

  __device__ __forceinline__ void store_rms(double rms) const {
    const int64_t address = sizes[MatrixRow::kRms];
    if (address != 0 && thread() == 0) *pointer<T>(address) = T(rms);
  }

  // The sum of the row moments of a matrix of the batch, from the sums of its blocks.
  __device__ __forceinline__ double sum_of_rows(int64_t matrix) const {
    return total(sums(cut.rows_at + 2 * matrix * cut.row_blocks), cut.row_blocks, 2);
  }
  // The mean of the row moments, with a floor.
  __device__ __forceinline__ T mean_of_rows(int64_t matrix) const {
    return rule().floored_mean(T(sum_of_rows(matrix) / double(rows())));
  }

  // Sums over the units.
  __device__ __forceinline__ double sum_of_p2() const { return total(sums(cut.p_at), cut.p_count); }
  __device__ __forceinline__ double sum_of_u2() const {
    // The units that leave exact sums test the rounded cap, which can be infinite. So does this.
    const bool exact = rule().cap < T(INFINITY) && cut.exact_count > 0;
    return exact ? total(sums(cut.late_at), cut.exact_count) : total(sums(cut.u_at), cut.u_count);
  }
};

// Step size and decay of a tensor, from sum u^2 and, if the step depends on it, sum p^2.
template <class T>
__device__ __forceinline__ void finish(const FactoredTensor<T>& tensor) {
  const double sum_of_u2 = tensor.sum_of_u2();
  const auto rule = rule_of<Adafactor<double>, double>(tensor.scalars);
  const double elements = double(tensor.elements());
  double rms_p = 0.0;
  if (tensor.scaled()) {
    rms_p = rule.rms(tensor.sum_of_p2(), elements);
    tensor.store_rms(rms_p);
  }
  if (thread() == 0) {
    double* step = tensor.sums(tensor.cut.step_at);
    rule.finish(rms_p, rule.rms(sum_of_u2, elements), step[0], step[1]);
  }
}

// Stores rms(p) if the step did not need it.
template <class T>
__device__ __forceinline__ void store_rms(const FactoredTensor<T>& tensor) {
  if (!tensor.sums_late()) return;
  const double sum = total(tensor.sums(tensor.cut.late_at), tensor.cut.late_count);
  const auto rule = rule_of<Adafactor<double>, double>(tensor.scalars);
  tensor.store_rms(rule.rms(sum, double(tensor.elements())));
}

struct Nothing {};

// The template argument of a slot in units that know no dtype: kNone stands for kAny.
template <int D>
constexpr int kOrAny = D == kNone ? int(kAny) : D;

// Writes elements of a tensor, given their u. P and M are the dtypes of parameter and momentum, or how
// else these are stored.
template <int P, int M, class T>
struct Writer {
  static constexpr bool kNoise =
      P == kNoisyBfloat16 || P == kAnyStored || M == kNoisyBfloat16 || M == kAnyStored;
  Slot<P> p;
  Slot<M == kNone ? P : M> m;
  const Adafactor<T> rule;
  const T step_size;
  T decay;
  const int momentum_slot;
  const Noises<kNoise> noises;
  bool aligned = true;  // only momentum of 8 bits may be used if it is not

  __device__ __forceinline__ Writer(const FactoredTensor<T>& tensor, int momentum_slot)
      : p(tensor.template slot<P>(0)),
        m(tensor.template slot<M == kNone ? P : M>(M == kNone ? 0 : momentum_slot)),
        rule(tensor.rule()),
        step_size(T(tensor.sums(tensor.cut.step_at)[0])),
        decay(T(tensor.sums(tensor.cut.step_at)[1])),
        momentum_slot(momentum_slot),
        noises(tensor.args, tensor.index, tensor.scalars, tensor.elements()) {}

  // Whether batches of rows have loops of their own, see over_band. Kernels with momentum have no
  // registers for them.
  static constexpr bool kWholeBatches = M == kNone && P != kAny && P != kAnyStored;
  // Whether the decay has no sign, see python/fusedstep/rules/decay.py.
  __device__ __forceinline__ bool plain() const { return !(decay < T(0)); }
  __device__ __forceinline__ Writer known_plain() const {
    Writer own = *this;
    keep(own.decay);  // the compiler must not look at the sign before it is known
    assume(own.plain());
    return own;
  }

  template <int N>
  struct Old {
    Vector<P, T, N> p;
    std::conditional_t<M == kNone, Nothing, Vector<M, T, N>> m;
  };

  template <int N>
  __device__ __forceinline__ void load(int64_t i, Old<N>& old) const {
    if constexpr (M == kBent) {
      if (!aligned) {
        p.load_each(i, old.p);
        return m.load_each(i, old.m);
      }
    }
    p.load(i, old.p);
    if constexpr (M != kNone) m.load(i, old.m);
  }

  // Returns the sum of squares of the old parameter.
  template <int N>
  __device__ __forceinline__ T write(int64_t i, const Old<N>& old, const T (&u)[N]) const {
    T new_p[N], new_m[N], squares = T(0);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      new_p[k] = old.p[k];
      squares = k == 0 ? new_p[0] * new_p[0] : squares + new_p[k] * new_p[k];
      if constexpr (M != kNone) {
        new_m[k] = old.m[k];
        rule.update(new_p[k], new_m[k], u[k], step_size, decay);
      } else {
        rule.update(new_p[k], u[k], step_size, decay);
      }
    }
    const auto noise = noises.template at<N>(i);
    if constexpr (M == kBent) {
      if (aligned)
        p.store(i, new_p, noise.of(0));
      else
        p.store_each(i, new_p, noise.of(0));
      m.store(i, new_m, noise, true, aligned);
      return squares;
    }
    p.store(i, new_p, noise.of(0));
    if constexpr (M != kNone && M != kBent) m.store(i, new_m, noise.of(momentum_slot));
    return squares;
  }

  __device__ __forceinline__ T write_one(int64_t i, T u) const {
    Old<1> old;
    load(i, old);
    const T all[1] = {u};
    return write(i, old, all);
  }
};

}  // namespace fusedstep::cuda
