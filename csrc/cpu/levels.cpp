// Lists the instruction sets of the walkers, and checks which of them this machine has.
#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fusedstep {

Walk walk_baseline(const LaunchArgs& launch);
Walk walk_baseline_floor(int64_t item_bytes);
Walk walk_baseline_squares(int64_t dtype);
#if defined(__x86_64__)
Walk walk_avx2(const LaunchArgs& launch);
Walk walk_avx2_floor(int64_t item_bytes);
Walk walk_avx2_squares(int64_t dtype);
Walk walk_avx512(const LaunchArgs& launch);
Walk walk_avx512_floor(int64_t item_bytes);
Walk walk_avx512_squares(int64_t dtype);
#endif

#if defined(__x86_64__)
namespace {

// Compilers before GCC 12 and clang 17 do not know the levels x86-64-v3 and v4 by name, nor the last
// three of these by theirs.
bool has_v3() {
  unsigned a, b, c = 0, d, more = 0;
  constexpr unsigned kLzcnt = 1u << 5, kMovbe = 1u << 22, kF16c = 1u << 29;
  __get_cpuid(1, &a, &b, &c, &d);
  __get_cpuid(0x80000001, &a, &b, &more, &d);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && (c & kF16c) &&
         (c & kMovbe) && (more & kLzcnt);
}
bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

}  // namespace
#endif

const Level kLevels[] = {
#if defined(__x86_64__)
    {"avx512", walk_avx512, walk_avx512_floor, walk_avx512_squares, has_v4},
    {"avx2", walk_avx2, walk_avx2_floor, walk_avx2_squares, has_v3},
#endif
    {"baseline", walk_baseline, walk_baseline_floor, walk_baseline_squares, [] { return true; }},
};
const int kLevelCount = sizeof(kLevels) / sizeof(kLevels[0]);

}  // namespace fusedstep
