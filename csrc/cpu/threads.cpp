// Runs launches on torch's thread pool, entered by its symbol GOMP_parallel. So there is one pool,
// sized by torch.set_num_threads, for any compiler. GNU's, LLVM's and Intel's OpenMP export the
// symbol, and loading torch binds it.
#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>

#include "../rules/layout.h"

extern "C" __attribute__((weak)) void GOMP_parallel(void (*function)(void*), void* data,
                                                    unsigned threads, unsigned flags);

namespace fusedstep {
namespace {

// How a thread rounds, and whether it flushes denormals to zero. Each thread has its own mode, and
// torch.set_flush_denormal changes only its caller's.
#if defined(__x86_64__)
using FloatMode = unsigned;
FloatMode float_mode() { return __builtin_ia32_stmxcsr(); }
void set_float_mode(FloatMode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
using FloatMode = int;
FloatMode float_mode() { return 0; }
void set_float_mode(FloatMode) {}
#endif

struct alignas(64) Progress {
  std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> done{0};
};

struct Team {
  const LaunchArgs& launch;
  Walk walk;
  std::unique_ptr<Progress[]> rounds;
  FloatMode mode;  // of the thread that launches
  std::atomic<int64_t> members{0};
};

void wait_until(const std::atomic<int64_t>& done, int64_t runs) {
  for (int spins = 0; done.load(std::memory_order_acquire) < runs; ++spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (spins >= 2000) std::this_thread::yield();  // another process may be on a member's core
  }
}

// Tensors without a gradient are left alone.
bool has_gradient(const LaunchArgs& launch, int64_t tensor) {
  static_assert(ElementwiseRow::kG == MatrixRow::kG && MatrixRow::kG == VectorRow::kG);
  return launch.table[tensor * launch.fields + ElementwiseRow::kG] != 0;
}

// A round ends when its runs are done, for any number of threads that the pool gives us.
void work_through(Team& team) {
  const LaunchArgs& launch = team.launch;
  const Entry* entries = reinterpret_cast<const Entry*>(launch.entries);
  char* scratch = launch.thread_scratch + team.members.fetch_add(1) * launch.thread_bytes;
  for (int64_t round = launch.first_round; round < launch.end_round; ++round) {
    const int64_t first = launch.rounds[round], runs = launch.rounds[round + 1] - first;
    Progress& state = team.rounds[round];
    for (int64_t run; (run = state.next.fetch_add(1, std::memory_order_relaxed)) < runs;) {
      for (int64_t e = launch.runs[first + run]; e < launch.runs[first + run + 1]; ++e)
        if (has_gradient(launch, entries[e].tensor)) team.walk(launch, entries[e], scratch);
      state.done.fetch_add(1, std::memory_order_release);
    }
    wait_until(state.done, runs);
  }
}

void join_team(void* data) {
  Team& team = *static_cast<Team*>(data);
  const FloatMode own = float_mode();
  set_float_mode(team.mode);
  work_through(team);
  set_float_mode(own);
}

// A forked child has none of its parent's threads. A pool that the parent used would wait for them
// forever, so a launch in a child runs on the calling thread.
bool is_child = false;

// Whether this process was forked. Its parent may have used the pool before this module was loaded.
bool started_as_copy() {
  constexpr unsigned kForkedWithoutExec = 0x40;  // PF_FORKNOEXEC of Linux
  unsigned flags = 0;
  if (std::FILE* file = std::fopen("/proc/self/stat", "r")) {
    char line[512] = {};
    const size_t length = std::fread(line, 1, sizeof(line) - 1, file);
    std::fclose(file);
    line[length] = 0;
    if (const char* name_end = std::strrchr(line, ')'))
      if (std::sscanf(name_end, ") %*c %*d %*d %*d %*d %*d %u", &flags) != 1) flags = 0;
  }
  return flags & kForkedWithoutExec;
}

const bool is_copy = started_as_copy();
const int watches_forks = pthread_atfork(nullptr, nullptr, [] { is_child = true; });

void enter_pool(Team& team) { GOMP_parallel(join_team, &team, unsigned(team.launch.threads), 0); }

}  // namespace

bool has_pool() { return GOMP_parallel != nullptr; }

void carry_out(const LaunchArgs& launch, Walk walk) {
  if (launch.end_round == launch.first_round) return;
  Team team{launch, walk, std::make_unique<Progress[]>(launch.end_round), float_mode()};
  const bool one_run = launch.rounds[launch.end_round] - launch.rounds[launch.first_round] == 1;
  if (launch.threads <= 1 || one_run || !has_pool() || is_child)
    work_through(team);
  else if (is_copy)
    std::thread(enter_pool, std::ref(team)).join();  // a new thread has a new pool
  else
    enter_pool(team);
}

}  // namespace fusedstep
