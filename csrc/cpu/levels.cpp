// Lists the instruction sets of the walkers, and checks which of them this machine has.
#include "dispatch.h"

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

const Level kLevels[] = {
#if defined(__x86_64__)
    {"avx512", walk_avx512, walk_avx512_floor, walk_avx512_squares,
     [] { return __builtin_cpu_supports("x86-64-v4") != 0; }},
    {"avx2", walk_avx2, walk_avx2_floor, walk_avx2_squares,
     [] { return __builtin_cpu_supports("x86-64-v3") != 0; }},
#endif
    {"baseline", walk_baseline, walk_baseline_floor, walk_baseline_squares, [] { return true; }},
};
const int kLevelCount = sizeof(kLevels) / sizeof(kLevels[0]);

}  // namespace fusedstep
