// The machine runs a launch: blocks, some of them resident, whose threads are fibers.
//
// One thread runs at a time, until it waits, reads a counter or exits. Then the machine picks another.
// Without a seed threads run in order, and a block runs until it waits for another block. With a seed
// every choice is random, and the same for the same seed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "fiber.h"
#include "host.h"
#include "races.h"

namespace sim {

struct Block;

// Where a thread waits, and for which lanes.
struct Wait {
  const char* file = nullptr;
  int line = 0;
  Exchange what = Exchange::kSync;
  unsigned mask = 0;
  bool operator==(const Wait& other) const;
};

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  uint3 index = {};
  int warp = 0, lane = 0;
  Wait wait;
  int source = 0;  // the lane that a shuffle reads
  uint64_t value = 0, result = 0;
  FenceContexts fences;
};

// Lanes as bits. A lane that is neither ready, exchanging nor exited is running or waits at the block's
// barrier.
struct Warp {
  unsigned present = 0, ready = 0, exchanging = 0, exited = 0;
  int next = 0;  // the lane to try first
};

struct Block {
  uint3 index = {};
  int threads = 0, at_barrier = 0, exited = 0;
  Wait barrier;
  unsigned ready_warps = 0;
  int next_warp = 0;
  Warp warps[32];
  size_t place = 0;  // its index among the resident blocks
  // How often it has read counters since one of them last changed, and the number of that change.
  int64_t looks = 0, change = 0;
  std::vector<Thread> thread;
  Stacks stacks;
  std::unique_ptr<char, void (*)(void*)> shared{nullptr, nullptr};
};

class Machine {
 public:
  void run(const Launch& launch, size_t resident, uint64_t seed);  // throws std::runtime_error

  // Called by the running thread.
  void sync_block(const Wait& wait);
  uint64_t exchange(const Wait& wait, uint64_t value, int source);
  void look();
  void change() { ++changes_; }
  void maybe_pause();
  [[noreturn]] void fail(std::string why);
  Thread& running() { return *running_; }

 private:
  static void entry();
  void start(Block& block);
  void begin(Thread& thread, size_t number);
  void clear();

  Block& some_block(Block& block, bool another);
  Thread& pick(Block& block);
  void go_on_with(Thread& next, bool over = false);
  void leave(bool another_block);
  void ready(Block& block, int warp, unsigned lanes);
  void give_results(Warp& warp, Thread* lanes, const Thread& last);
  void order_threads(Thread* first, int count, unsigned mask);

  std::string why_stuck(const Block& block) const;
  void check_progress();

  uint64_t random();
  bool chance(unsigned one_in) { return seeded_ && random() % one_in == 0; }
  static int first_from(unsigned lanes, int start);

  const Launch* launch_ = nullptr;
  Fiber host_;
  std::vector<std::unique_ptr<Block>> blocks_;  // reused by later launches, for their stacks
  std::vector<Block*> resident_;
  Thread* running_ = nullptr;
  Block* ended_ = nullptr;
  std::string fault_;
  uint64_t started_ = 0, total_ = 0, first_ = 0, stride_ = 1;
  int64_t changes_ = 0;
  bool seeded_ = false;
  uint64_t random_ = 0;
};

extern Machine machine;

std::string readable_name_of(const void* kernel);

}  // namespace sim
