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
constexpr int kElementwiseResident = InDouble                            ? 2
                                     : kHas16Bits<S>                     ? 7
                                     : S == kNoisyBfloat16 || S == kBent ? 6
                                                                         : 5;

// Elements of a thread's vector: 16 bytes of the smallest dtype of the kernel.
template <int P, int G, int S>
constexpr int kElementwiseVector = kHas16Bits<P> || kHas16Bits<G> || kHas16Bits<S> ? 8 : 4;

template <class Rule, class T, int N, size_t... K>
__device__ __forceinline__ void update_one(const Rule& rule, T& p, T g, T (&state)[N],
                                           std::index_sequence<K...>) {
  rule.update(p, g, state[K]...);
}

// Whether all or some states may have 8 bits.
template <int S>
constexpr bool kInBlocks = S == kBent || S == kAnyStored;

// P, G and S are the dtypes of the parameter, the gradient and all states (kNone without states), or
// how else these are stored. With kBent, the first state has signs and others have none.
template <int Rule, int P, int G, int S, bool InDouble>
__global__ void __launch_bounds__(kElementwiseThreads, kElementwiseResident<S, InDouble>)
    elementwise(const __grid_constant__ KernelArgs args) {
  using T = std::conditional_t<InDouble, double, float>;
  constexpr int kStates = RuleOf<Rule, T>::kStates;
  constexpr int kRoom = kStates > 0 ? kStates : 1;  // no array is empty
  constexpr int kVector = kElementwiseVector<P, G, S>;
  constexpr int kStride = kElementwiseThreads * kVector;
  // Vectors that a thread loads at once: those of 4 elements are small, and without states there are
  // registers for two.
  constexpr int kAhead = P == kFloat32 && (kVector == 4 || kStates == 0) ? 2 : 1;
  constexpr bool kHasCompanions = kHasCompanion<P> || kHasCompanion<S>;
  constexpr bool kNoise =
      P == kNoisyBfloat16 || S == kNoisyBfloat16 || P == kAnyStored || S == kAnyStored;
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
  [[maybe_unused]] bool in_blocks = S == kBent;
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    state[k] = slot_of<S>(args, table_row, ElementwiseRow::kStates + k).from(first);
    aligned = aligned && state[k].aligned();
    if constexpr (S == kBent) state[k].dtype = k == 0 ? kBentInt8 : kBentUint8;
    if constexpr (S == kAnyStored) in_blocks = in_blocks || state[k].in_blocks();
  }
  const int64_t elements =
      table_row[kHasCompanions ? args.fields - 1 : ElementwiseRow::kStates + kStates];
  const int64_t left = elements - first;
  const int end = left < kChunk ? int(left) : kChunk;
  // A warp takes whole blocks.
  const bool by_vectors = kInBlocks<S> ? aligned || in_blocks : aligned;
  const int end_of_vectors = by_vectors ? end / kVector * kVector : 0;
  const Noises<kNoise> noises(args, tensor, scalars, elements);

  auto update = [&](T& own_p, T own_g, T(&own)[kRoom]) {
    update_one(rule, own_p, own_g * scale, own, std::make_index_sequence<kStates>());
  };
  auto load = [&](const auto& slot, int j, auto& x) {
    if (!kInBlocks<S> || aligned)
      slot.load(j, x);
    else
      slot.load_each(j, x);
  };

  const int ahead = S == kBent ? thread() % kWarp * kVector : 0;  // of the first thread of the warp
  for (int i = thread() * kVector; i - ahead < end_of_vectors; i += kAhead * kStride) {
    Vector<P, T, kVector> old_p[kAhead];
    Vector<G, T, kVector> old_g[kAhead];
    Vector<S, T, kVector> old_state[kAhead][kRoom];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int j = i + a * kStride;
      if constexpr (S == kBent) {
        old_p[a].clear(), old_g[a].clear();
#pragma unroll
        for (int k = 0; k < kStates; ++k) old_state[a][k].clear(state[k].dtype);
      }
      if (j >= end_of_vectors) break;
      load(p, j, old_p[a]);
      load(g, j, old_g[a]);
#pragma unroll
      for (int k = 0; k < kStates; ++k) load(state[k], j, old_state[a][k]);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int j = i + a * kStride;
      const bool is_here = j < end_of_vectors;
      if (S != kBent && !is_here) break;
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
      const auto noise = noises.template at<kVector>(first + j);
      if (kInBlocks<S> && !aligned) {
        if (is_here) p.store_each(j, new_p, noise.of(ElementwiseRow::kP));
      } else if (S != kBent || is_here) {
        p.store(j, new_p, noise.of(ElementwiseRow::kP));
      }
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        const auto own = noise.of(ElementwiseRow::kStates + k);
        if constexpr (kInBlocks<S>)
          state[k].store(j, new_state[k], own, is_here, aligned);
        else
          state[k].store(j, new_state[k], own);
      }
    }
  }
  if constexpr (S != kBent) {
    // The last few elements, or all elements of an unaligned tensor.
    for (int i = end_of_vectors + thread(); i < end; i += kElementwiseThreads) {
      T own_p[1] = {p.template load_one<T>(i)}, own[kRoom];
#pragma unroll
      for (int k = 0; k < kStates; ++k) own[k] = state[k].template load_one<T>(i);
      update(own_p[0], g.template load_one<T>(i), own);
      const auto noise = noises.template at<1>(first + i);
      p.store(i, own_p, noise.of(ElementwiseRow::kP));
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        const T one[1] = {own[k]};
        state[k].store(i, one, noise.of(ElementwiseRow::kStates + k));
      }
    }
  }
}

}  // namespace fusedstep::cuda
