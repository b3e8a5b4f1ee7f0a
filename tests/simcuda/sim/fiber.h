// Fibers: stacks to switch between. ASan and TSan are told about every switch.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(SIMCUDA_UCONTEXT)
#define SIMCUDA_UCONTEXT  // slower: each switch is a system call for the signal mask
#endif
#ifdef SIMCUDA_UCONTEXT
#include <ucontext.h>
#endif

namespace sim {

struct Fiber {
#ifdef SIMCUDA_UCONTEXT
  ucontext_t registers;
#else
  void* registers = nullptr;  // saved on the stack, at this address
#endif
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* asan_frames = nullptr;
  void* tsan_context = nullptr;
};

// Makes a fiber of the running thread, so that other fibers can switch back to it.
void adopt(Fiber& fiber);
// Makes a fiber that will call `entry`, which must call `arrived` first and `go` last. Frames start
// `shift` bytes below the end of the stack; `shift` is a multiple of 64.
void prepare(Fiber& fiber, char* stack, size_t bytes, size_t shift, void (*entry)());
void arrived();
// Switches to `to`. Returns when a fiber switches back to `from`, or never if `from` is over.
void go(Fiber& from, Fiber& to, bool over = false);

// Memory for `count` stacks of kBytes, with a protected page before each.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  ~Stacks();
  void reserve(size_t count);
  void forget();  // clears what ASan knows about the frames of abandoned fibers
  char* operator[](size_t k) const { return memory_ + k * kStride + kGuard; }

#if defined(SIMCUDA_ASAN) || defined(SIMCUDA_TSAN)
  static constexpr size_t kBytes = 256 << 10;
#else
  static constexpr size_t kBytes = 64 << 10;
#endif

 private:
  static constexpr size_t kGuard = 4096, kStride = kBytes + kGuard;
  char* memory_ = nullptr;
  size_t count_ = 0;
};

}  // namespace sim
