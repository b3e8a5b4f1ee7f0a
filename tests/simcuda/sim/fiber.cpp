// Switches stacks, with a few instructions of assembly or with ucontext.
#include "fiber.h"

#include <sys/mman.h>

#include <new>

#ifdef SIMCUDA_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SIMCUDA_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#ifndef SIMCUDA_UCONTEXT
// Pushes the callee-saved registers, switches to another stack and continues where that one stopped.
extern "C" __attribute__((visibility("hidden"))) void simcuda_go(void** from, void* to);
asm(R"(
  .text
  .hidden simcuda_go
  .globl simcuda_go
  .type simcuda_go, @function
simcuda_go:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
  .size simcuda_go, .-simcuda_go
)");
#endif

namespace sim {
namespace {

[[maybe_unused]] Fiber* came_from = nullptr;

}  // namespace

void adopt([[maybe_unused]] Fiber& fiber) {
  fiber.stack = nullptr;  // ASan reports its address at the first switch
#ifdef SIMCUDA_TSAN
  fiber.tsan_context = __tsan_get_current_fiber();
#endif
}

void prepare(Fiber& fiber, char* stack, size_t bytes, size_t shift, void (*entry)()) {
  fiber.stack = stack, fiber.stack_bytes = bytes;
  fiber.asan_frames = nullptr;
#ifdef SIMCUDA_UCONTEXT
  getcontext(&fiber.registers);
  fiber.registers.uc_stack.ss_sp = stack;
  fiber.registers.uc_stack.ss_size = bytes - shift;
  fiber.registers.uc_link = nullptr;
  makecontext(&fiber.registers, entry, 0);
#else
  // Six registers, all 0, and the return address. At a function's entry rsp must be 16 n + 8.
  void** top = reinterpret_cast<void**>(stack + bytes - shift) - 2;
  *top = reinterpret_cast<void*>(entry);
  for (int k = 1; k <= 6; ++k) top[-k] = nullptr;
  fiber.registers = top - 6;
#endif
}

void arrived() {
#ifdef SIMCUDA_ASAN
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (came_from->stack == nullptr) came_from->stack = stack, came_from->stack_bytes = bytes;
#endif
}

void go(Fiber& from, Fiber& to, [[maybe_unused]] bool over) {
#ifdef SIMCUDA_ASAN
  came_from = &from;
  __sanitizer_start_switch_fiber(over ? nullptr : &from.asan_frames, to.stack, to.stack_bytes);
#endif
#ifdef SIMCUDA_TSAN
  __tsan_switch_to_fiber(to.tsan_context, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef SIMCUDA_UCONTEXT
  swapcontext(&from.registers, &to.registers);
#else
  simcuda_go(&from.registers, to.registers);
#endif
#ifdef SIMCUDA_ASAN
  __sanitizer_finish_switch_fiber(from.asan_frames, nullptr, nullptr);
#endif
}

Stacks::~Stacks() {
  if (memory_ != nullptr) munmap(memory_, count_ * kStride);
}

void Stacks::forget() {
#ifdef SIMCUDA_ASAN
  __asan_unpoison_memory_region(memory_, count_ * kStride);
#endif
}

void Stacks::reserve(size_t count) {
  if (count <= count_) return;
  this->~Stacks();
  memory_ = nullptr, count_ = 0;
  void* memory = mmap(nullptr, count * kStride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory), count_ = count;
  for (size_t k = 0; k < count; ++k) {
    if (mprotect(memory_ + k * kStride, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
  }
}

}  // namespace sim
