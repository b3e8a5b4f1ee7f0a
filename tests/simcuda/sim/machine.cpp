// Starts and ends blocks and threads, and chooses the thread that runs next.
#include "machine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace sim {

Machine machine;
Position position;

namespace {

// Resident threads. Each stack takes two memory maps, and Linux allows a process 65,530.
constexpr size_t kMostThreads = 16384;
// With a seed, one choice in so many goes to another block, or to another warp or lane; and one atomic
// in so many lets others run.
constexpr int kMovesAway = 32;
constexpr int kJumps = 8;
constexpr int kPauses = 4;

size_t threads_of(const Launch& launch) {
  return size_t(launch.block.x) * launch.block.y * launch.block.z;
}

}  // namespace

void Machine::run(const Launch& launch, size_t resident, uint64_t seed) {
  launch_ = &launch;
  const size_t threads = threads_of(launch);
  total_ = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  if (kTsan && threads * total_ > kMostTsanThreads) {
    throw std::runtime_error("simcuda: TSan follows " + std::to_string(kMostTsanThreads) +
                             " threads, and this launch has " + std::to_string(threads * total_));
  }
  seeded_ = seed != 0, random_ = seed;
  started_ = 0, first_ = 0, stride_ = 1, changes_ = 0;
  if (seeded_) {
    first_ = random() % total_, stride_ = 1 + random() % total_;
    while (std::gcd(stride_, total_) != 1) ++stride_;
  }
  adopt(host_);
  resident_.clear();
  position.block_shape = launch.block, position.grid_shape = launch.grid;
  resident = std::max<size_t>(1, std::min({resident, size_t(total_), kMostThreads / threads}));
  // With TSan no block is reused: each must have memory and threads that TSan has not seen before.
  const size_t needed = kTsan ? total_ : resident;
  while (blocks_.size() < needed) blocks_.push_back(std::make_unique<Block>());
  for (size_t k = 0; k < resident; ++k) {
    resident_.push_back(blocks_[k].get());
    resident_[k]->place = k;
    start(*resident_[k]);
  }
  size_t next = 0;
  while (!resident_.empty() && fault_.empty()) {
    Block& block = *resident_[seeded_ ? random() % resident_.size() : next % resident_.size()];
    Thread& thread = pick(block);
    running_ = nullptr;
    go_on_with(thread);
    if (ended_ == nullptr) continue;
    next = ended_->place;
    if (started_ < total_) {
      if (kTsan) resident_[next] = blocks_[started_].get();
      resident_[next]->place = next;
      start(*resident_[next++]);
    } else {
      resident_.erase(resident_.begin() + next);
      for (size_t k = next; k < resident_.size(); ++k) resident_[k]->place = k;
    }
    ended_ = nullptr;
  }
  clear();
  if (!fault_.empty()) throw std::runtime_error("simcuda: " + std::exchange(fault_, {}));
}

// After a launch, even an abandoned one: everything that its threads did happens before what the host
// does next.
void Machine::clear() {
  for (Block* block : resident_) block->stacks.forget();
  resident_.clear();
  running_ = nullptr, ended_ = nullptr;
  if (!kTsan) return;
  std::vector<Context> contexts;
  for (auto& block : blocks_) {
    for (Thread& thread : block->thread) {
      if (thread.fiber.tsan_context != nullptr) contexts.push_back(thread.fiber.tsan_context);
    }
  }
  order(contexts, {host_.tsan_context});
  for (auto& block : blocks_) {
    for (Thread& thread : block->thread) {
      end_context(thread.fiber.tsan_context);
      end_context(thread.fences.before);
      end_context(thread.fences.seen);
    }
  }
}

void Machine::start(Block& block) {
  const uint64_t number = uint64_t((first_ + (unsigned __int128)started_++ * stride_) % total_);
  const dim3 grid = launch_->grid;
  block.index = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y),
                 unsigned(number / grid.x / grid.y)};
  block.threads = int(threads_of(*launch_));
  block.at_barrier = block.exited = 0;
  block.looks = 0, block.change = changes_;
  block.next_warp = 0;
  void* memory = nullptr;  // of exactly the size that was asked for, so that ASan finds its end
  if (posix_memalign(&memory, 128, std::max<size_t>(1, launch_->shared)) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, launch_->shared);
  block.shared = {static_cast<char*>(memory), std::free};
  block.stacks.reserve(block.threads);
  if (block.thread.size() < size_t(block.threads)) block.thread.resize(block.threads);
  block.ready_warps = 0;
  for (int warp = 0; warp * 32 < block.threads; ++warp) {
    const int lanes = std::min(32, block.threads - warp * 32);
    block.warps[warp] = Warp();
    block.warps[warp].present = lanes == 32 ? ~0u : (1u << lanes) - 1;
    ready(block, warp, block.warps[warp].present);
  }
  for (int k = 0; k < block.threads; ++k) {
    Thread& thread = block.thread[k];
    thread.block = &block;
    thread.warp = k / 32, thread.lane = k % 32;
    const dim3 shape = launch_->block;
    thread.index = {k % shape.x, k / shape.x % shape.y, k / shape.x / shape.y};
    // Stacks that start at the same offset in a page would evict each other from the cache.
    prepare(thread.fiber, block.stacks[k], Stacks::kBytes, k * 5 % 64 * 64, entry);
    thread.fiber.tsan_context = new_context();
  }
}

void Machine::entry() {
  arrived();
  machine.launch_->call(machine.launch_->kernel, machine.launch_->argument);
  Thread& thread = *machine.running_;
  Block& block = *thread.block;
  block.warps[thread.warp].exited |= 1u << thread.lane;
  machine.change();
  if (++block.exited == block.threads) {
    machine.ended_ = &block;
    go(thread.fiber, machine.host_, true);
  }
  machine.go_on_with(machine.pick(machine.some_block(block, false)), true);
}

// Ends the launch from a fiber, whose frames are abandoned without running destructors.
void Machine::fail(std::string why) {
  const Thread& thread = *running_;
  const uint3 index = thread.block->index;
  std::string name = readable_name_of(launch_->kernel);
  fault_ = std::move(why) + " (kernel " + name + ", block " + std::to_string(index.x);
  if (launch_->grid.y * launch_->grid.z > 1) {
    fault_ += "," + std::to_string(index.y) + "," + std::to_string(index.z);
  }
  fault_ += ", thread " + std::to_string(thread.warp * 32 + thread.lane) + ")";
  why = std::string(), name = std::string();
  go(running_->fiber, host_, true);
  std::abort();  // not reached: nothing switches back to this fiber
}

void Machine::ready(Block& block, int warp, unsigned lanes) {
  block.warps[warp].ready |= lanes;
  block.ready_warps |= 1u << warp;
}

// Returns this block or another one that has a thread ready to run.
Block& Machine::some_block(Block& block, bool another) {
  if (block.ready_warps == 0) fail(why_stuck(block));
  if (chance(kMovesAway)) return *resident_[random() % resident_.size()];
  return another ? *resident_[(block.place + 1) % resident_.size()] : block;
}

Thread& Machine::pick(Block& block) {
  if (chance(kJumps)) block.next_warp = int(random() % 32);
  const int number = first_from(block.ready_warps, block.next_warp);
  Warp& warp = block.warps[number];
  if (chance(kJumps)) warp.next = int(random() % 32);
  const int lane = first_from(warp.ready, warp.next);
  block.next_warp = number, warp.next = lane + 1;
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) block.ready_warps &= ~(1u << number);
  return block.thread[number * 32 + lane];
}

// The first lane that is set, from `start` on, wrapping around. At least one must be set.
int Machine::first_from(unsigned lanes, int start) {
  start &= 31;
  const unsigned turned = lanes >> start | lanes << ((32 - start) & 31);
  return (__builtin_ctz(turned) + start) & 31;
}

void Machine::go_on_with(Thread& next, bool over) {
  Thread* before = running_;
  if (before == &next) return;
  running_ = &next;
  position.thread = next.index, position.lane = next.lane;
  position.block = next.block->index, position.shared = next.block->shared.get();
  go(before == nullptr ? host_ : before->fiber, next.fiber, over);
}

void Machine::leave(bool another_block) {
  go_on_with(pick(some_block(*running_->block, another_block)));
}

void Machine::maybe_pause() {
  if (!chance(kPauses)) return;
  ready(*running_->block, running_->warp, 1u << running_->lane);
  leave(chance(2));
}

uint64_t Machine::random() {  // xorshift64*
  random_ ^= random_ >> 12, random_ ^= random_ << 25, random_ ^= random_ >> 27;
  return random_ * 0x2545f4914f6cdd1d >> 11;
}

}  // namespace sim
