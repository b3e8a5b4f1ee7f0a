// The instruction sets the walkers were built for, and how to tell whether this machine has them.
#include "walk.h"

namespace fusedstep {

Walk walk_baseline(const Launch& launch);
#if defined(__x86_64__)
Walk walk_avx2(const Launch& launch);
Walk walk_avx512(const Launch& launch);
#endif

const Level kLevels[] = {
#if defined(__x86_64__)
    {"avx512", walk_avx512, [] { return __builtin_cpu_supports("x86-64-v4") != 0; }},
    {"avx2", walk_avx2, [] { return __builtin_cpu_supports("x86-64-v3") != 0; }},
#endif
    {"baseline", walk_baseline, [] { return true; }},
};
const int kLevelCount = sizeof(kLevels) / sizeof(kLevels[0]);

}  // namespace fusedstep
