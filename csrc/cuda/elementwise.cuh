// The kernel of rules without sums: one block walks one chunk of a tensor.
#pragma once

#include <type_traits>
#include <utility>

#include "../rules.h"
#include "rule.cuh"

namespace fusedstep::cuda {

constexpr int kElementwiseThreads = 128;

// Blocks that should fit on a multiprocessor: with so many, enough bytes are on their way.
template <int S, bool InDouble>
constexpr int kElementwiseResident = InDouble         ? 2
                                     : S == kBfloat16 ? 7
                                                      : 5;

// Elements of a thread's vector: 16 bytes of the smallest dtype of the kernel.
template <int P, int G, int S>
constexpr int kElementwiseVector = P == kBfloat16 || G == kBfloat16 || S == kBfloat16 ? 8 : 4;

template <class Rule, class T, int N, size_t... K>
__device__ __forceinline__ void update_one(const Rule& rule, T& p, T g, T (&state)[N],
                                           std::index_sequence<K...>) {
  rule.update(p, g, state[K]...);
}

// P, G and S are the dtypes of the parameter, the gradient and all states (kNone without states).
template <int Rule, int P, int G, int S, bool InDouble>
__global__ void __launch_bounds__(kElementwiseThreads, kElementwiseResident<S, InDouble>)
    elementwise(const __grid_constant__ KernelArgs args) {
  using T = std::conditional_t<InDouble, double, float>;
  constexpr int kStates = RuleOf<Rule, T>::kStates;
  constexpr int kRoom = kStates > 0 ? kStates : 1;  // no array is empty
  constexpr int kVector = kElementwiseVector<P, G, S>;
  constexpr int kStride = kElementwiseThreads * kVector;
  constexpr int kAhead = P == kFloat32 ? 2 : 1;  // vectors that a thread loads at once
  if (found_inf(args)) return;

  const int32_t* entry = args.entries + 2 * int64_t(blockIdx.x);
  const int64_t tensor = entry[0], first = int64_t(entry[1]) * kChunk;
  const int64_t* table_row = args.table + tensor * args.fields;
  if (!has_gradient(table_row)) return;
  const double* scalars = scalars_of(args, tensor);
  const auto rule = rule_of<typename RuleOf<Rule, T>::type, T>(scalars);
  const T scale = gradient_scale<T>(args, scalars);

  const Slot<P> p = slot_of<P>(args, table_row, ElementwiseRow::kP).from(first);
  const Slot<G> g = slot_of<G>(args, table_row, ElementwiseRow::kG).from(first);
  Slot<S> state[kRoom];
  bool aligned = p.aligned() && g.aligned();
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    state[k] = slot_of<S>(args, table_row, ElementwiseRow::kStates + k).from(first);
    aligned = aligned && state[k].aligned();
  }
  const int64_t left = table_row[ElementwiseRow::kStates + kStates] - first;
  const int end = left < kChunk ? int(left) : kChunk;
  const int end_of_vectors = aligned ? end / kVector * kVector : 0;

  auto update = [&](T& own_p, T own_g, T(&own)[kRoom]) {
    update_one(rule, own_p, own_g * scale, own, std::make_index_sequence<kStates>());
  };

  for (int i = thread() * kVector; i < end_of_vectors; i += kAhead * kStride) {
    Vector<P, T, kVector> old_p[kAhead];
    Vector<G, T, kVector> old_g[kAhead];
    Vector<S, T, kVector> old_state[kAhead][kRoom];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int j = i + a * kStride;
      if (j >= end_of_vectors) break;
      p.load(j, old_p[a]);
      g.load(j, old_g[a]);
#pragma unroll
      for (int k = 0; k < kStates; ++k) state[k].load(j, old_state[a][k]);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int j = i + a * kStride;
      if (j >= end_of_vectors) break;
      T new_p[kVector], new_state[kRoom][kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        T own[kRoom];
#pragma unroll
        for (int k = 0; k < kStates; ++k) own[k] = old_state[a][k][e];
        new_p[e] = old_p[a][e];
        update(new_p[e], old_g[a][e], own);
#pragma unroll
        for (int k = 0; k < kStates; ++k) new_state[k][e] = own[k];
      }
      p.store(j, new_p);
#pragma unroll
      for (int k = 0; k < kStates; ++k) state[k].store(j, new_state[k]);
    }
  }

  // The last few elements, or all elements of an unaligned tensor.
  for (int i = end_of_vectors + thread(); i < end; i += kElementwiseThreads) {
    T own_p = p.template load_one<T>(i), own[kRoom];
#pragma unroll
    for (int k = 0; k < kStates; ++k) own[k] = state[k].template load_one<T>(i);
    update(own_p, g.template load_one<T>(i), own);
    p.store_one(i, own_p);
#pragma unroll
    for (int k = 0; k < kStates; ++k) state[k].store_one(i, own[k]);
  }
}

}  // namespace fusedstep::cuda
