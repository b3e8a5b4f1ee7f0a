// The walker of elementwise rules: goes over the tensors of a launch, a tile at a time.
#pragma once

#include <algorithm>
#include <utility>

#include "../plan.h"
#include "tile.h"

namespace fusedstep {
namespace {

// Elements converted at a time. The buffers of all slots fit in the first-level cache.
constexpr int64_t kElements = 512;

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

template <class T>
T gradient_scale(const LaunchArgs& launch, int64_t tensor) {
  return T(launch.grad_scale) * T(launch.scalars[launch.scalar_row_of[tensor] * launch.row_length]);
}

// `own` are the parameter and its states.
template <class Rule, class T, size_t... K>
void update_all(const Rule& rule, T* const (&own)[1 + sizeof...(K)], const T* g, int64_t n,
                std::index_sequence<K...>) {
  FUSEDSTEP_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) rule.update(own[0][i], g[i], own[1 + K][i]...);
}

template <class Rule, class T, int States>
void walk_elementwise(const LaunchArgs& launch, const Entry& entry) {
  const int64_t* tensor = launch.table + entry.tensor * launch.fields;
  const Rule rule = rule_of<Rule, T>(launch, entry.tensor);
  const T scale = gradient_scale<T>(launch, entry.tensor);
  const int64_t elements = tensor[ElementwiseRow::kStates + States];
  const int64_t end = std::min<int64_t>(entry.index + kCpuRun, elements);
  T g_buffer[kElements], own_buffer[1 + States][kElements];

  auto slot_of = [](int k) { return k == 0 ? ElementwiseRow::kP : ElementwiseRow::kStates + k - 1; };
  auto at = [&](int slot, int64_t i) {
    return reinterpret_cast<char*>(tensor[slot]) + i * item_bytes(launch.dtypes[slot]);
  };
  bool direct = scale == T(1);
  for (int slot = 0; slot < ElementwiseRow::kStates + States; ++slot)
    direct &= launch.dtypes[slot] == dtype_of<T>();
  const int64_t stride = direct ? kCpuRun : kElements;

  for (int64_t i = entry.index; i < end; i += stride) {
    const int64_t n = std::min(stride, end - i);
    const T* g =
        load<T>(launch.dtypes[ElementwiseRow::kG], at(ElementwiseRow::kG, i), n, scale, g_buffer);
    T* own[1 + States];
    for (int k = 0; k <= States; ++k)
      own[k] = load(launch.dtypes[slot_of(k)], at(slot_of(k), i), n, own_buffer[k]);
    update_all(rule, own, g, n, std::make_index_sequence<States>());
    for (int k = 0; k <= States; ++k) store(launch.dtypes[slot_of(k)], at(slot_of(k), i), n, own[k]);
  }
}

}  // namespace
}  // namespace fusedstep
