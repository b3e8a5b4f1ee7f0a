// Adafactor on vectors, which keep an unfactored second moment. Each piece is read twice.
#pragma once

#include "factored_tensor.cuh"

namespace fusedstep::cuda {

// Calls `visit` with every place of a piece, spread over the threads.
template <class T, class Visit>
__device__ __forceinline__ void over_piece(const FactoredTensor<T>& tensor, int unit, Visit visit) {
  const int64_t first = int64_t(unit) * kVectorUnit, left = tensor.elements() - first;
  const int count = int(left < kVectorUnit ? left : kVectorUnit);
  for (int i = thread(); i < count; i += kThreads) visit(first + i);
}

// The second moment, and the sums of u^2 and p^2. P is kAny, or kAnyStored if the parameter or the
// momentum may be stored in other ways.
template <int P, class T>
__device__ __forceinline__ void vector_read(const FactoredTensor<T>& tensor, int unit) {
  const Slot<P> p = tensor.template slot<P>(0);
  const Slot<kAny> g = tensor.template slot<kAny>(1), v = tensor.template slot<kAny>(2);
  const T scale = tensor.gradient_scale();
  const bool sums_p = tensor.sums_early();
  T u_squares = T(0), p_squares = T(0);
  over_piece(tensor, unit, [&](int64_t i) {
    const T own_g = g.template load_one<T>(i) * scale;
    const T moment = tensor.update_moment(v, i, own_g * own_g);
    const T u = tensor.rule().precondition(own_g, tensor.rule().col_factor(moment));
    u_squares += u * u;
    if (sums_p) {
      const T own_p = p.template load_one<T>(i);
      p_squares += own_p * own_p;
    }
  });
  const double u_sum = block_sum(double(u_squares)), p_sum = block_sum(double(p_squares));
  if (thread() != 0) return;
  tensor.sums(tensor.cut.u_at)[unit] = u_sum;
  tensor.sums(tensor.cut.p_at)[unit] = p_sum;
}

// The second read: parameter and momentum.
template <int P, int M, class T>
__device__ __forceinline__ void vector_update(const FactoredTensor<T>& tensor, int unit) {
  const Slot<kAny> g = tensor.template slot<kAny>(1), v = tensor.template slot<kAny>(2);
  const T scale = tensor.gradient_scale();
  const Writer<P, M, T> writer(tensor, VectorRow::kMomentum);
  T squares = T(0);
  over_piece(tensor, unit, [&](int64_t i) {
    const T factor = tensor.rule().col_factor(v.template load_one<T>(i));
    squares +=
        writer.write_one(i, tensor.rule().precondition(g.template load_one<T>(i) * scale, factor));
  });
  if (!tensor.sums_late()) return;
  store_sum(tensor.sums(tensor.cut.late_at + unit), double(squares));
}

}  // namespace fusedstep::cuda
