// The bare kernel of the benchmark's floor: it moves the bytes of a step and computes nothing. It reads
// all slots of a table of elementwise rows. Those that a step writes, which are all but the gradient,
// become themselves xor the gradient, in place. So the same walk again restores them. A tensor with
// fewer slots than its row has room for ends with addresses of 0.
//
// Lists in caches need each level's own build: on one core of an AMD EPYC, 2026-11-26, four streams of
// 256 KiB move at 97 GB/s as avx2 and at 73 as baseline. In memory both are the same.
#include <algorithm>

#include "../rules/layout.h"
#include "dispatch.h"

namespace fusedstep {
namespace {

// Integers, because no bits are special to them. Several words at once, because the streams may
// overlap as far as the compiler knows, and then it vectorizes no loop over single words.
constexpr int64_t kVector = 64;  // bytes: a cache line
using Words = uint64_t __attribute__((vector_size(kVector), aligned(1), may_alias));

template <int kWritten>
void walk_streams(const char* g, char* const* written, int64_t bytes) {
  int64_t at = 0;
  for (; at + kVector <= bytes; at += kVector) {
    const Words mask = *reinterpret_cast<const Words*>(g + at);
    for (int k = 0; k < kWritten; ++k) *reinterpret_cast<Words*>(written[k] + at) ^= mask;
  }
  for (; at < bytes; ++at)
    for (int k = 0; k < kWritten; ++k) written[k][at] ^= g[at];
}

// By the number of streams that are written: p and up to kMaxSlots - 2 states.
using WalkStreams = void (*)(const char* g, char* const* written, int64_t bytes);
constexpr WalkStreams kWalkStreams[] = {nullptr,         walk_streams<1>, walk_streams<2>,
                                        walk_streams<3>, walk_streams<4>, walk_streams<5>};
static_assert(sizeof(kWalkStreams) / sizeof(kWalkStreams[0]) == kMaxSlots);

template <int64_t kItem>
void walk_floor(const LaunchArgs& launch, const Entry& entry, char*) {
  const int64_t* row = launch.table + entry.tensor * launch.fields;
  const int64_t slots = elementwise_slots(launch.fields), first = entry.index * kItem;
  const int64_t elements = std::min<int64_t>(kCpuRun, row[slots] - entry.index);
  auto stream = [&](int64_t slot) { return reinterpret_cast<char*>(row[slot]) + first; };
  char* written[kMaxSlots] = {stream(ElementwiseRow::kP)};
  int count = 1;
  for (int64_t slot = ElementwiseRow::kStates; slot < slots && row[slot] != 0; ++slot)
    written[count++] = stream(slot);
  kWalkStreams[count](stream(ElementwiseRow::kG), written, elements * kItem);
}

}  // namespace

Walk FUSEDSTEP_FLOOR(int64_t item_bytes) {
  switch (item_bytes) {
    case 2:
      return walk_floor<2>;
    case 4:
      return walk_floor<4>;
    case 8:
      return walk_floor<8>;
  }
  return nullptr;
}

}  // namespace fusedstep
