// Fibers: stacks to change between. They tell ASan and TSan what they do.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(SIMCUDA_UCONTEXT)
#define SIMCUDA_UCONTEXT  // slower: it asks the kernel for the signal mask at every change
#endif
#ifdef SIMCUDA_UCONTEXT
#include <ucontext.h>
#endif

namespace sim {

struct Fiber {
#ifdef SIMCUDA_UCONTEXT
  ucontext_t registers;
#else
  void* registers = nullptr;  // on the stack; this is where
#endif
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* asan_frames = nullptr;
  void* tsan_context = nullptr;
};

// What runs now as a fiber: the one that others go back to.
void adopt(Fiber& fiber);
// A fiber that will call `entry`, which must call `arrived` first and `go` last. Frames start `shift`
// bytes, a multiple of 64, below the stack's end.
void prepare(Fiber& fiber, char* stack, size_t bytes, size_t shift, void (*entry)());
void arrived();
// Returns when somebody goes back to `from`; never, if `from` is over.
void go(Fiber& from, Fiber& to, bool over = false);

// Memory of `bytes` for each of `count` stacks, with a page before each that must not be touched.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  ~Stacks();
  void reserve(size_t count);
  void forget();  // what ASan knows of the frames of fibers that were abandoned
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
