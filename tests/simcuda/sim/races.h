// What orders the memory of threads, told to TSan. In other builds these functions do nothing.
//
// Each thread of a kernel is a thread of TSan's. Going from one fiber to another orders nothing, so a
// race is reported whatever the schedule was. Acquire and release on a counter are TSan's own.
#pragma once

#include <cstddef>
#include <vector>

namespace sim {

// A thread of TSan's: what it has done, and what it has seen of others.
using Context = void*;

// Two more contexts of a thread that uses fences and atomics.
struct FenceContexts {
  Context before = nullptr;  // the thread up to its last fence: what its atomics hand on
  Context seen = nullptr;    // what its atomics have been handed: the thread's at its next fence
};

#ifdef SIMCUDA_TSAN
constexpr bool kTsan = true;
#if __GNUC__ < 13
constexpr size_t kMostTsanThreads = 8000;
#else
constexpr size_t kMostTsanThreads = 240;  // with more, newer versions of TSan forget without a word
#endif

Context new_context();  // starts with the running context's past
void end_context(Context& context);
// What any of `before` has done comes before what any of `after` does from now on.
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
