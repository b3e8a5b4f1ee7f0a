// The walker of elementwise rules: goes over the tensors of a launch, kLanes numbers at a time.
#pragma once

#include <algorithm>
#include <array>
#include <tuple>
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

// The same rule for n numbers at once.
template <int n = kLanes, template <class> class Rule, class T>
FUSEDSTEP_INLINE Rule<Lanes<T, n>> on_lanes(const Rule<T>& rule) {
  Rule<Lanes<T, n>> wide;
  constexpr size_t kFields = sizeof(Rule<T>) / sizeof(T);
  static_assert(sizeof(wide) == kFields * sizeof(Lanes<T, n>));
  T field[kFields];
  Lanes<T, n> lanes[kFields];
  std::memcpy(field, &rule, sizeof(rule));
  for (size_t k = 0; k < kFields; ++k) lanes[k] = Lanes<T, n>(field[k]);
  std::memcpy(static_cast<void*>(&wide), lanes, sizeof(wide));
  return wide;
}

// The slot of a tensor, by its row of the table.
inline Stored stored_at(const LaunchArgs& launch, const int64_t* row, int slot) {
  const int64_t companion = launch.companions[slot];
  return {launch.dtypes[slot], reinterpret_cast<char*>(row[slot]),
          companion == 0 ? nullptr : reinterpret_cast<char*>(row[companion])};
}

// What the noise of a tensor's step depends on.
inline const NoiseRow& noise_row_of(const LaunchArgs& launch, int64_t tensor) {
  return reinterpret_cast<const NoiseRow*>(launch.noise)[tensor];
}
inline NoiseKeys noise_keys(const LaunchArgs& launch, int64_t tensor) {
  const double* row = launch.scalars + launch.scalar_row_of[tensor] * launch.row_length;
  return NoiseKeys(noise_row_of(launch, tensor).key, row[launch.row_length - 1]);
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
template <int64_t bytes, class S>
FUSEDSTEP_INLINE void fetch_ahead(const Beside<S>& at) {
  fetch_ahead<bytes>(at.at, at.companion);
}

// Some numbers of one tensor: the parameter, the gradient and the states of a rule.
template <int rule_id, class T>
struct ElementwiseRun {
  static constexpr int kStates = RuleOf<rule_id, T>::kStates;
  using Rule = typename RuleOf<rule_id, T>::type;
  static constexpr bool kInBlocks = RuleOf<rule_id, T>::kInBlocks;
  using States = std::make_index_sequence<kStates>;

  Rule rule;
  T scale;  // of the gradient, with its sign
  Place place;
  int64_t n;
  std::array<Stored, 2 + kStates> slot;

  // Some numbers of these.
  FUSEDSTEP_INLINE ElementwiseRun part(int64_t first, int64_t count) const {
    ElementwiseRun own = *this;
    own.n = count;
    for (Stored& one : own.slot) one = one.from(first);
    return own;
  }

  // Updates numbers of known storage types.
  template <class P, class G, class S>
  void update() const {
    update<P, G, S>(States());
  }
  template <class P, class G, class S, size_t... K>
  void update(std::index_sequence<K...>) const {
    constexpr int kCount = kLanesOf<P>;
    using Numbers = Lanes<T, kCount>;
    const auto wide = on_lanes<kCount>(rule);
    const Numbers g_scale(scale);
    const Cursor<P> p = cursor<P>(slot[0]);
    const G* g = cursor<G>(slot[1]);
    [[maybe_unused]] const std::array<S*, kStates> state = {cursor<S>(slot[2 + K])...};
    by_lanes<kCount>(n, [&](int64_t i, auto count) FUSEDSTEP_LAMBDA {
      // The hardware does not run far enough ahead of a loop that converts numbers: on an AMD EPYC
      // this takes a fifth off bfloat16 AdamW in memory (2026-11-26).
      if constexpr (sizeof(P) < sizeof(T))
        fetch_ahead<512>(p + i), fetch_ahead<512>(g + i, state[K] + i...);
      Numbers x = widen<T, kCount>(p + i, count), s[] = {x, widen<T, kCount>(state[K] + i, count)...};
      wide.update(x, widen<T, kCount>(g + i, count) * g_scale, s[1 + K]...);
      // The parameter is known last, so what waits for it comes last.
      const Place here = place.plus(i);
      (narrow(state[K] + i, s[1 + K], count, here.of(2 + K)), ...);
      narrow(p + i, x, count, here.of(0));
    });
  }
};

// Updates a run whose states all have 8 bits, block by block: codes need the largest number of a block.
// So those of a block are stored while the next one is computed, which keeps the processor busy while
// it divides. The first state has a sign, the others have none.
template <size_t k>
using CodeOf = std::conditional_t<k == 0, int8_t, uint8_t>;

template <class P, class G, class Run, size_t... K>
void update_blocks(const Run& run, std::index_sequence<K...>) {
  constexpr int kStates = Run::kStates;
  constexpr bool pairs = kInPairs<P>;
  constexpr int kCount = kLanesOf<P>;
  using Numbers = Lanes<float, kCount>;
  const auto wide = on_lanes<kCount>(run.rule);
  const Numbers g_scale(run.scale);
  const std::tuple<Blocks<CodeOf<K>>...> blocks{Blocks<CodeOf<K>>(run.slot[2 + K])...};
  float fresh[2][kStates][kScaledBlock], factor[kStates] = {};
  // `updates`: computes the block from number i on. `stores`: the codes of the one before it.
  auto walk_block = [&](int64_t i, auto updates, auto stores) FUSEDSTEP_LAMBDA {
    float (*own)[kScaledBlock] = fresh[i / kScaledBlock % 2];
    float (*before)[kScaledBlock] = fresh[1 - i / kScaledBlock % 2];
    const int64_t here = updates ? i : 0;
    const Cursor<P> p = cursor<P>(run.slot[0].from(here));
    const G* g = cursor<G>(run.slot[1].from(here));
    const std::tuple<Unit<CodeOf<K>>...> unit{Unit<CodeOf<K>>(*std::get<K>(blocks).scale_at(here))...};
    Largest largest[kStates];
    const Place place = run.place.plus(i);
    for (int j = 0; j < kScaledBlock; j += kCount) {
      if constexpr (updates) {
        fetch_ahead<512>(p + j), fetch_ahead<512>(g + j, std::get<K>(blocks).code + i + j...);
        Numbers x = widen<float, kCount>(p + j);
        Numbers s[] = {
            lanes_of_codes<pairs, kCount>(std::get<K>(blocks).code + i + j, std::get<K>(unit))...};
        wide.update(x, widen<float, kCount>(g + j) * g_scale, s[K]...);
        for (int k = 0; k < kStates; ++k) {
          for (int part = 0; part < Numbers::kParts; ++part) largest[k].add(s[k].part[part]);
          put_lanes(own[k] + j, s[k]);
        }
        narrow(p + j, x, kAll, place.plus(j));
      }
      if constexpr (stores)
        (store_codes<pairs, kCount>(std::get<K>(blocks).code + i - kScaledBlock + j, before[K] + j,
                                    factor[K]),
         ...);
    }
    if constexpr (updates)
      ((factor[K] = store_scale<CodeOf<K>>(std::get<K>(blocks).scale_at(i), largest[K])), ...);
  };
  using Yes = std::true_type;
  using No = std::false_type;
  walk_block(0, Yes(), No());
  for (int64_t i = kScaledBlock; i < run.n; i += kScaledBlock) walk_block(i, Yes(), Yes());
  walk_block(run.n, No(), Yes());
}

// Of these parameters and gradients.
template <int... P, int... G, int... S, class Run>
bool update_if_in_blocks(DtypesList<Dtypes<P, G, S>...>, const Run& run) {
  if constexpr (Run::kInBlocks) {
    for (int k = 0; k < Run::kStates; ++k)
      if (run.slot[2 + k].code != (k == 0 ? kBentInt8 : kBentUint8)) return false;
    return ((run.slot[0].code == P && run.slot[1].code == G
                 ? (update_blocks<AnyOrder<StorageOf<P>>, AnyOrder<StorageOf<G>>>(
                        run, typename Run::States()),
                    true)
                 : false) ||
            ...);
  }
  return false;
}
using OfBlocks = DtypesList<Dtypes<kFloat32, kFloat32, 0>, Dtypes<kBfloat16, kBfloat16, 0>,
                            Dtypes<kNoisyBfloat16, kBfloat16, 0>, Dtypes<kRest16, kBfloat16, 0>,
                            Dtypes<kRest8, kBfloat16, 0>>;

// Numbers of other storage types are converted in buffers. These stay in the first-level cache, and
// are so short that the processor converts some numbers while it divides others.
constexpr int64_t kBuffered = kScaledBlock;

template <int rule_id, class T>
void update_in_buffers(const ElementwiseRun<rule_id, T>& run) {
  constexpr int kSlots = ElementwiseRun<rule_id, T>::kStates + 2;
  alignas(64) T buffer[kSlots][kBuffered];
  for (int64_t i = 0; i < run.n; i += kBuffered) {
    const auto stored = run.part(i, std::min(kBuffered, run.n - i));
    auto loaded = stored;
    for (int k = 0; k < kSlots; ++k)
      loaded.slot[k] = {0, reinterpret_cast<char*>(load(stored.slot[k], stored.n, buffer[k])), nullptr};
    loaded.template update<T, T, T>();
    for (int k = 0; k < kSlots; ++k)
      if (k != ElementwiseRow::kG)
        store(stored.slot[k], stored.n, reinterpret_cast<T*>(loaded.slot[k].at),
              run.place.plus(i).of(k));
  }
}

// Updates a run if its slots are stored in the listed ways. If all have 16 bits, the order of numbers
// does not matter.
template <int P, int G, int S, class Run>
bool update_if_stored_as(Dtypes<P, G, S>, const Run& run) {
  bool same = run.slot[0].code == P && run.slot[1].code == G;
  for (int k = 0; k < Run::kStates; ++k) same &= run.slot[2 + k].code == S;
  if (!same) return false;
  using Parameter = AnyOrder<StorageOf<P>>;
  using State = AnyOrder<StorageOf<S>>;
  constexpr bool pairs = kInPairs<Parameter> && G == kBfloat16 && kInPairs<State>;
  if constexpr (pairs)
    run.template update<Parameter, AnyOrder<Bfloat16>, State>();
  else
    run.template update<StorageOf<P>, StorageOf<G>, StorageOf<S>>();
  return true;
}

template <class... Listed, class Run>
bool update_if_listed(DtypesList<Listed...>, const Run& run) {
  return (update_if_stored_as(Listed(), run) || ...);
}

// What GPUs have kernels for, and float16 alone.
using Float16Alone = DtypesList<Dtypes<kFloat16, kFloat16, kFloat16>>;

template <int rule_id, class T>
void update_run(const ElementwiseRun<rule_id, T>& run) {
  using Rule = RuleOf<rule_id, T>;
  if constexpr (std::is_same_v<T, float>)
    if (update_if_listed(typename Rule::dtypes(), run) ||
        update_if_listed(typename Rule::stored(), run) || update_if_listed(Float16Alone(), run) ||
        update_if_in_blocks(OfBlocks(), run))
      return;
  update_in_buffers(run);
}

template <int rule_id, class T>
void walk_elementwise(const LaunchArgs& launch, const Entry& entry, char*) {
  using Run = ElementwiseRun<rule_id, T>;
  const int64_t* tensor = launch.table + entry.tensor * launch.fields;
  const int64_t elements = tensor[elementwise_slots(launch.fields) + ElementwiseRow::kElements];
  Run run{rule_of<typename Run::Rule, T>(launch, entry.tensor),
          gradient_scale<T>(launch, entry.tensor),
          {},
          std::min<int64_t>(kCpuRun, elements - entry.index),
          {}};
  for (size_t k = 0; k < run.slot.size(); ++k)
    run.slot[k] = stored_at(launch, tensor, int(k)).from(entry.index);
  if (launch.noise == nullptr) return update_run(run);

  // Noise needs numbers that lie one after another in the whole tensor.
  const NoiseRow& noise = noise_row_of(launch, entry.tensor);
  const NoiseKeys keys = noise_keys(launch, entry.tensor);
  for (int64_t i = 0, count; i < run.n; i += count) {
    const int64_t here = entry.index + i;
    count = std::min(run.n - i, noise.cols - here % noise.cols);
    Run part = run.part(i, count);
    part.place = {keys, whole_place(noise, here)};
    update_run(part);
  }
}

}  // namespace
}  // namespace fusedstep
