// Tells TSan what orders the memory accesses of threads. In other builds these functions do nothing.
//
// TSan sees each thread of a kernel as a thread. A switch between fibers orders nothing, so a race is
// reported whatever the schedule was. TSan itself understands acquire and release on a counter.
#pragma once

#include <cstddef>
#include <vector>

namespace sim {

// A thread as TSan knows it: what it has done, and what it has seen of other threads.
using Context = void*;

// Two more contexts for a thread that uses fences and atomics.
struct FenceContexts {
  Context before = nullptr;  // the thread up to its last fence: its atomics release this
  Context seen = nullptr;    // what its atomics have acquired: the thread gets it at its next fence
};

#ifdef SIMCUDA_TSAN
constexpr bool kTsan = true;
#if __GNUC__ < 13
constexpr size_t kMostTsanThreads = 8000;
#else
constexpr size_t kMostTsanThreads = 240;  // with more, newer versions of TSan silently miss races
#endif

Context new_context();  // is ordered after everything that the running context has done
void end_context(Context& context);
// Orders what each of `before` has done before what each of `after` does from now on.
void order(const std::vector<Context>& before, const std::vector<Context>& after);
void fence_of(Context thread, FenceContexts& contexts);
void before_atomic_of(FenceContexts& contexts, const void* address);
void after_atomic_of(FenceContexts& contexts, const void* address);
#else
constexpr bool kTsan = false;
constexpr size_t kMostTsanThreads = 0;
inline Context new_context() { return nullptr; }
inline void end_context(Context&) {}
inline void order(const std::vector<Context>&, const std::vector<Context>&) {}
inline void fence_of(Context, FenceContexts&) {}
inline void before_atomic_of(FenceContexts&, const void*) {}
inline void after_atomic_of(FenceContexts&, const void*) {}
#endif

}  // namespace sim
