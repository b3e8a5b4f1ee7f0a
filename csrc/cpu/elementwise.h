// The walker of elementwise rules: goes over the tensors of a launch, kLanes numbers at a time.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "../plan.h"
#include "../rules.h"
#include "load_store.h"

namespace fusedstep {
namespace {

// The rule with its fields set from a row of scalars, rounded once. The row starts with the
// gradient's sign.
template <class Rule, class T>
Rule rule_of(const LaunchArgs& launch, int64_t tensor) {
  Rule rule;
  static_assert(sizeof(Rule) % sizeof(T) == 0, "a rule holds nothing but scalars");
  const double* row = launch.scalars + launch.scalar_row_of[tensor] * launch.row_length;
  T field[sizeof(Rule) / sizeof(T)];
  for (size_t k = 0; k < sizeof(Rule) / sizeof(T); ++k) field[k] = T(row[1 + k]);
  std::memcpy(&rule, field, sizeof(Rule));
  return rule;
}

// The same rule for kLanes numbers at once.
template <template <class> class Rule, class T>
FUSEDSTEP_INLINE Rule<Lanes<T>> on_lanes(const Rule<T>& rule) {
  Rule<Lanes<T>> wide;
  constexpr size_t kFields = sizeof(Rule<T>) / sizeof(T);
  static_assert(sizeof(wide) == kFields * sizeof(Lanes<T>));
  T field[kFields];
  Lanes<T> lanes[kFields];
  std::memcpy(field, &rule, sizeof(rule));
  for (size_t k = 0; k < kFields; ++k) lanes[k] = Lanes<T>(field[k]);
  std::memcpy(static_cast<void*>(&wide), lanes, sizeof(wide));
  return wide;
}

template <class T>
T gradient_scale(const LaunchArgs& launch, int64_t tensor) {
  return T(launch.grad_scale) * T(launch.scalars[launch.scalar_row_of[tensor] * launch.row_length]);
}

// Prefetches what a loop reads after so many bytes.
template <int64_t bytes, class... At>
FUSEDSTEP_INLINE void fetch_ahead(const At*... at) {
  (__builtin_prefetch(reinterpret_cast<const char*>(at) + bytes), ...);
}

// Some numbers of one tensor: the parameter, the gradient and the states of a rule.
template <int rule_id, class T>
struct ElementwiseRun {
  static constexpr int kStates = RuleOf<rule_id, T>::kStates;
  using Rule = typename RuleOf<rule_id, T>::type;
  using States = std::make_index_sequence<kStates>;

  Rule rule;
  T scale;  // of the gradient, with its sign
  Place place;
  int64_t n;
  std::array<char*, 2 + kStates> at;  // in the order of the slots

  // Updates numbers of known storage types.
  template <class P, class G, class S>
  void update() const {
    update<P, G, S>(States());
  }
  template <class P, class G, class S, size_t... K>
  void update(std::index_sequence<K...>) const {
    const auto wide = on_lanes(rule);
    const Lanes<T> g_scale(scale);
    P* p = reinterpret_cast<P*>(at[0]);
    const G* g = reinterpret_cast<const G*>(at[1]);
    [[maybe_unused]] const std::array<S*, kStates> state = {reinterpret_cast<S*>(at[2 + K])...};
    by_lanes(n, [&](int64_t i, auto count) FUSEDSTEP_LAMBDA {
      // The hardware does not run far enough ahead of a loop that converts numbers: on an AMD EPYC
      // this takes a fifth off bfloat16 AdamW in memory (2026-11-26).
      if constexpr (sizeof(P) < sizeof(T)) fetch_ahead<512>(p + i, g + i, state[K] + i...);
      Lanes<T> x = widen<T>(p + i, count), s[] = {x, widen<T>(state[K] + i, count)...};
      wide.update(x, widen<T>(g + i, count) * g_scale, s[1 + K]...);
      // The parameter is known last, so what waits for it comes last.
      (narrow(state[K] + i, s[1 + K], count, place.plus(i)), ...);
      narrow(p + i, x, count, place.plus(i));
    });
  }
};

// Numbers of other storage types are converted in buffers. These stay in the first-level cache, and
// are so short that the processor converts some numbers while it divides others.
constexpr int64_t kBuffered = 128;

template <int rule_id, class T>
void update_in_buffers(ElementwiseRun<rule_id, T> run, const int64_t* dtypes) {
  constexpr int kSlots = ElementwiseRun<rule_id, T>::kStates + 2;
  alignas(64) T buffer[kSlots][kBuffered];
  const std::array<char*, kSlots> first = run.at;
  const int64_t begin = run.place.index, end = run.n;
  for (int64_t i = 0; i < end; i += kBuffered) {
    run.n = std::min(kBuffered, end - i);
    run.place.index = begin + i;
    for (int k = 0; k < kSlots; ++k) {
      char* from = first[k] + i * item_bytes(dtypes[k]);
      run.at[k] = reinterpret_cast<char*>(load(dtypes[k], from, run.n, buffer[k]));
    }
    run.template update<T, T, T>();
    for (int k = 0; k < kSlots; ++k)
      if (k != ElementwiseRow::kG)
        store(dtypes[k], first[k] + i * item_bytes(dtypes[k]), run.n, reinterpret_cast<T*>(run.at[k]),
              run.place);
  }
}

// Updates a run if its dtypes are the listed ones. If all are bfloat16, their order does not matter.
template <int P, int G, int S, class Run>
bool update_if_stored_as(Dtypes<P, G, S>, const Run& run, const int64_t* dtypes) {
  bool same = dtypes[0] == P && dtypes[1] == G;
  for (int k = 0; k < Run::kStates; ++k) same &= dtypes[2 + k] == S;
  if (!same) return false;
  constexpr bool pairs = P == kBfloat16 && G == P && S == P && Lanes<float>::kParts > 1;
  if constexpr (pairs)
    run.template update<Bfloat16Pairs, Bfloat16Pairs, Bfloat16Pairs>();
  else
    run.template update<StorageOf<P>, StorageOf<G>, StorageOf<S>>();
  return true;
}

// Of the dtypes that GPUs have kernels for, and of float16 alone.
template <class... Listed, class Run>
bool update_if_listed(DtypesList<Listed...>, const Run& run, const int64_t* dtypes) {
  return (update_if_stored_as(Listed(), run, dtypes) || ...) ||
         update_if_stored_as(Dtypes<kFloat16, kFloat16, kFloat16>(), run, dtypes);
}

template <int rule_id, class T>
void walk_elementwise(const LaunchArgs& launch, const Entry& entry, char*) {
  using Run = ElementwiseRun<rule_id, T>;
  const int64_t* tensor = launch.table + entry.tensor * launch.fields;
  const int64_t elements = tensor[ElementwiseRow::kStates + Run::kStates];
  Run run{rule_of<typename Run::Rule, T>(launch, entry.tensor),
          gradient_scale<T>(launch, entry.tensor),
          {entry.tensor, entry.index},
          std::min<int64_t>(kCpuRun, elements - entry.index),
          {}};
  for (size_t k = 0; k < run.at.size(); ++k)
    run.at[k] = reinterpret_cast<char*>(tensor[k]) + entry.index * item_bytes(launch.dtypes[k]);
  if constexpr (std::is_same_v<T, float>)
    if (update_if_listed(typename RuleOf<rule_id, T>::dtypes(), run, launch.dtypes)) return;
  update_in_buffers(run, launch.dtypes);
}

}  // namespace
}  // namespace fusedstep
