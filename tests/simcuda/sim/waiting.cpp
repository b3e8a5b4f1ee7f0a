// Barriers, exchanges within a warp and reads of counters; and the reason when no thread can go on.
#include <cstdio>
#include <cstring>

#include "machine.h"

namespace sim {
namespace {

#if defined(SIMCUDA_ASAN) || defined(SIMCUDA_TSAN)
constexpr int64_t kPatience = 3'000;
#else
constexpr int64_t kPatience = 100'000;  // reads by each block without a change: a few ms per block
#endif

std::string text_of(const Wait& wait) {
  const char* slash = std::strrchr(wait.file, '/');
  return std::string(slash == nullptr ? wait.file : slash + 1) + ":" + std::to_string(wait.line);
}

std::string text_of(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

}  // namespace

bool Wait::operator==(const Wait& other) const {
  return line == other.line && what == other.what && mask == other.mask &&
         (file == other.file || std::strcmp(file, other.file) == 0);
}

void Machine::sync_block(const Wait& wait) {
  Thread& thread = *running_;
  Block& block = *thread.block;
  thread.wait = wait;
  if (block.at_barrier == 0) {
    block.barrier = wait;
  } else if (!(block.barrier == wait)) {
    fail("divergent __syncthreads: threads of a block wait at " + text_of(block.barrier) + " and at " +
         text_of(wait));
  }
  if (++block.at_barrier < block.threads) return leave(false);
  block.at_barrier = 0;
  order_threads(block.thread.data(), block.threads, ~0u);
  for (int warp = 0; warp * 32 < block.threads; ++warp) ready(block, warp, block.warps[warp].present);
  leave(false);
}

uint64_t Machine::exchange(const Wait& wait, uint64_t value, int source) {
  Thread& thread = *running_;
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.warp];
  const unsigned me = 1u << thread.lane;
  if ((wait.mask & me) == 0) {
    fail("lane " + std::to_string(thread.lane) + " is not in its own mask " + text_of(wait.mask) +
         " at " + text_of(wait));
  }
  if (wait.what == Exchange::kShuffle && (wait.mask >> source & 1) == 0) {
    fail("a shuffle at " + text_of(wait) + " reads lane " + std::to_string(source) +
         ", which is not in its mask " + text_of(wait.mask));
  }
  thread.wait = wait, thread.value = value, thread.source = source;
  warp.exchanging |= me;
  bool complete = (warp.exchanging & wait.mask) == wait.mask;
  Thread* lanes = &block.thread[thread.warp * 32];
  for (unsigned rest = complete ? wait.mask : 0; rest != 0; rest &= rest - 1) {
    complete = complete && lanes[__builtin_ctz(rest)].wait == wait;
  }
  if (complete) {
    give_results(warp, lanes, thread);
    ready(block, thread.warp, wait.mask);
  }
  leave(false);
  return thread.result;
}

void Machine::give_results(Warp& warp, Thread* lanes, const Thread& last) {
  const unsigned mask = last.wait.mask;
  uint64_t ballot = 0;
  if (last.wait.what == Exchange::kSync) order_threads(lanes, 32, mask);
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    Thread& lane = lanes[__builtin_ctz(rest)];
    lane.result = lanes[lane.source].value;
    ballot |= lane.value << lane.lane;
  }
  for (unsigned rest = last.wait.what == Exchange::kBallot ? mask : 0; rest != 0; rest &= rest - 1) {
    lanes[__builtin_ctz(rest)].result = ballot;
  }
  warp.exchanging &= ~mask;
}

// A barrier orders the memory accesses of these threads.
void Machine::order_threads(Thread* first, int count, unsigned mask) {
  if (!kTsan) return;
  std::vector<Context> contexts;
  for (int k = 0; k < count; ++k) {
    if (mask >> k % 32 & 1) contexts.push_back(first[k].fiber.tsan_context);
  }
  order(contexts, contexts);
}

void Machine::look() {
  Block& block = *running_->block;
  if (block.change != changes_) block.change = changes_, block.looks = 0;
  if (++block.looks % kPatience == 0) check_progress();
  ready(block, running_->warp, 1u << running_->lane);
  ++block.next_warp;  // a warp that spins must not keep others from running
  leave(true);
}

// Reports a deadlock if all resident blocks have only read counters for long and none has changed.
void Machine::check_progress() {
  for (const Block* block : resident_) {
    if (block->change != changes_ || block->looks < kPatience) return;
  }
  std::string all;
  for (const Block* block : resident_) {
    if (!all.empty()) all += ", ";
    if (all.size() > 200) {
      all += "...";
      break;
    }
    all += std::to_string(block->index.x);
  }
  fail("deadlock: every resident block (" + all + ") waits for a counter that nobody changes, and " +
       std::to_string(total_ - started_) + " blocks have not started");
}

std::string Machine::why_stuck(const Block& block) const {
  for (int k = 0; k < block.threads; ++k) {
    const Thread& thread = block.thread[k];
    const Warp& warp = block.warps[thread.warp];
    if ((warp.exchanging >> thread.lane & 1) == 0) continue;
    const Wait& wait = thread.wait;
    const std::string mask = "the mask " + text_of(wait.mask) + " at " + text_of(wait);
    for (int lane = 0; lane < 32; ++lane) {
      if ((wait.mask >> lane & 1) == 0) continue;
      const std::string names = mask + " names lane " + std::to_string(lane);
      if ((warp.present >> lane & 1) == 0) return names + ", which does not exist";
      if ((warp.exited >> lane & 1) != 0) return names + ", which has exited";
      const Wait& other = block.thread[thread.warp * 32 + lane].wait;
      if ((warp.exchanging >> lane & 1) == 0) return names + ", which waits at " + text_of(other);
      if (!(other == wait)) {
        return names + ", which waits with the mask " + text_of(other.mask) + " at " + text_of(other);
      }
    }
  }
  return "divergent __syncthreads at " + text_of(block.barrier) + ": " + std::to_string(block.exited) +
         " of " + std::to_string(block.threads) + " threads of the block have exited";
}

// The functions that device.h declares.
void sync_block(const char* file, int line) { machine.sync_block({file, line, Exchange::kSync, 0}); }

uint64_t exchange(Exchange what, unsigned mask, uint64_t value, int source, const char* file,
                  int line) {
  if (what != Exchange::kShuffle) source = machine.running().lane;
  return machine.exchange({file, line, what, mask}, value, source);
}

void fail_width(int width, const char* file, int line) {
  machine.fail("a shuffle's width must be 1, 2, 4, 8, 16 or 32, not " + std::to_string(width) +
               ", at " + text_of(Wait{file, line, Exchange::kSync, 0}));
}

void fence() { fence_of(machine.running().fiber.tsan_context, machine.running().fences); }

void before_atomic(const void* address) { before_atomic_of(machine.running().fences, address); }

void after_atomic(const void* address, bool changed) {
  after_atomic_of(machine.running().fences, address);
  if (!changed) return machine.look();
  machine.change();
  machine.maybe_pause();
}

void looked() { machine.look(); }

void added() {
  machine.change();
  machine.maybe_pause();
}

}  // namespace sim
