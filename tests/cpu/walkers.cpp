// Runs the CPU walkers on made-up tensors and prints a hash of what each case leaves in memory. The
// program is built for several processors, whose outputs must be equal.
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/threads.h"
#include "cpu/work_list.h"
#include "rules.h"
#include "rules/adafactor.h"

namespace fusedstep {

Walk FUSEDSTEP_LEVEL(const LaunchArgs& launch);

namespace {

// Numbers of a fixed sequence.
struct Random {
  uint64_t state = 1;
  uint32_t bits() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state >> 32);
  }
  double unit() { return bits() / 4294967296.0; }
};

// Strange bits are zeros, infinities, nans and denormals of any format, in one number of 16. Second
// moments are never negative: what a machine makes of a root of a negative number has no sign bit
// that all agree on.
void fill(std::vector<char>& memory, int64_t dtype, bool positive, bool strange, Random& random) {
  const int bytes = kItemBytes[dtype];
  for (size_t at = 0; at + bytes <= memory.size(); at += bytes) {
    const double x = (positive ? 0.0 : -0.5) + random.unit() * 0.9 + 0.01;
    const float single = float(x);
    uint64_t bits = 0;
    if (dtype == kFloat64) std::memcpy(&bits, &x, 8);
    if (dtype == kFloat32) std::memcpy(&bits, &single, 4);
    if (dtype == kBfloat16) std::memcpy(&bits, reinterpret_cast<const char*>(&single) + 2, 2);
    if (dtype == kFloat16)
      bits = 0x2000 + (random.bits() & 0x1bff) + (positive ? 0 : random.bits() & 0x8000);
    if (strange && random.bits() % 16 == 0) {
      const uint64_t ones = ~uint64_t(0) >> (64 - 8 * bytes + 1);  // without the sign
      const uint64_t some[] = {0, 1, ones, dtype == kFloat16 ? 0x7c00 : ones << (8 * bytes - 9) & ones};
      bits = some[random.bits() % 4];
    }
    std::memcpy(memory.data() + at, &bits, bytes);
  }
}

uint64_t hash(const std::vector<char>& memory, int64_t dtype, uint64_t seed) {
  const int bytes = kItemBytes[dtype];
  for (size_t at = 0; at + bytes <= memory.size(); at += bytes) {
    uint64_t bits = 0;
    std::memcpy(&bits, memory.data() + at, bytes);
    // All nans are alike: a processor may choose which of two it keeps.
    const uint64_t sign = uint64_t(1) << (8 * bytes - 1);
    const uint64_t infinity = dtype == kFloat64    ? 0x7ffull << 52
                              : dtype == kFloat32  ? 0xffull << 23
                              : dtype == kBfloat16 ? 0xffull << 7
                                                   : 0x1full << 10;
    if ((bits & ~sign) > infinity) bits = infinity + 1;
    seed = (seed ^ bits) * 1099511628211u;
  }
  return seed;
}

struct Shape {
  int64_t batch, rows, cols;
};

// Three steps over a tensor of each shape. Returns a hash of all tensors.
uint64_t run(int64_t rule, bool vectors, std::vector<int64_t> dtypes, const std::vector<Shape>& shapes,
             bool strange) {
  const RuleFacts& facts = kRules[rule];
  const int64_t slots = int64_t(dtypes.size());
  const int64_t sizes = !facts.factored ? ElementwiseRow::kSizes
                        : vectors       ? VectorRow::kSizes
                                        : MatrixRow::kSizes;
  Random random;
  LaunchArgs launch;
  launch.rule = rule, launch.vectors = vectors, launch.fields = slots + sizes;
  launch.in_float64 = dtypes[0] == kFloat64;
  std::copy(dtypes.begin(), dtypes.end(), launch.dtypes);

  std::vector<std::vector<char>> memory;
  std::vector<double> rms(shapes.size());
  std::vector<int64_t> table, rows_of(shapes.size(), 0);
  for (size_t t = 0; t < shapes.size(); ++t) {
    const Shape& s = shapes[t];
    const int64_t count = s.batch * s.rows * s.cols;
    for (int64_t slot = 0; slot < slots; ++slot) {
      int64_t n = count;
      if (facts.factored && !vectors && slot == MatrixRow::kRow) n = s.batch * s.rows;
      if (facts.factored && !vectors && slot == MatrixRow::kCol) n = s.batch * s.cols;
      memory.emplace_back(n * kItemBytes[dtypes[slot]]);
      fill(memory.back(), dtypes[slot], slot >= 2, strange, random);
      table.push_back(reinterpret_cast<int64_t>(memory.back().data()));
    }
    if (facts.factored) table.push_back(t % 2 ? reinterpret_cast<int64_t>(&rms[t]) : 0);
    if (facts.factored && !vectors)
      table.insert(table.end(), {s.batch, s.rows, s.cols});
    else
      table.push_back(count);
  }
  std::vector<double> scalars(1 + sizeof(Adafactor<double>) / sizeof(double));
  scalars[0] = -1.0;  // the gradient's sign
  for (size_t k = 1; k < scalars.size(); ++k) scalars[k] = 0.05 + 0.9 * random.unit();

  launch.table = table.data(), launch.scalar_row_of = rows_of.data();
  launch.scalars = scalars.data(), launch.row_length = int64_t(scalars.size());
  const int64_t tensors = int64_t(shapes.size());
  WorkList work = facts.factored ? factored_work(launch, tensors) : elementwise_work(launch, tensors);
  std::vector<char> scratch(work.scratch_bytes + 64), thread_scratch(work.thread_bytes + 64);
  auto aligned = [](std::vector<char>& from) {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(from.data()) + 63) / 64 * 64);
  };
  launch.entries = reinterpret_cast<const int64_t*>(work.entries.data());
  launch.runs = work.runs.data(), launch.rounds = work.rounds.data();
  launch.scratch_of = work.scratch_of.data();
  launch.scratch = aligned(scratch), launch.thread_scratch = aligned(thread_scratch);
  launch.end_round = int64_t(work.rounds.size()) - 1;
  launch.grad_scale = 0.5;
  for (int step = 0; step < 3; ++step) carry_out(launch, FUSEDSTEP_LEVEL(launch));

  uint64_t result = 14695981039346656037u;
  for (size_t k = 0; k < memory.size(); ++k) result = hash(memory[k], dtypes[k % slots], result);
  return result;
}

}  // namespace
}  // namespace fusedstep

int main() {
  using namespace fusedstep;
  const std::vector<Shape> elementwise = {
      {1, 1, 1}, {1, 1, 15}, {1, 1, 16}, {1, 1, 1000}, {1, 3, 70001}};
  const std::vector<Shape> matrices = {{1, 1, 1},    {1, 7, 3},      {2, 9, 16},   {5, 33, 17},
                                       {1, 3, 2100}, {1, 300, 1100}, {2, 290, 251}};
  for (int64_t rule = 0; rule < kRuleCount; ++rule)
    for (int p = 0; p < 4; ++p)
      for (int g = 0; g < 4; ++g)
        for (int state : {p, int(kFloat32)})
          for (bool strange : {false, true})
            for (bool vectors : {false, true}) {
              const RuleFacts& facts = kRules[rule];
              if (vectors && !facts.factored) continue;
              const int states = facts.states + (!facts.factored ? 0 : vectors ? 1 : 2);
              std::vector<int64_t> dtypes = {p, g};
              dtypes.insert(dtypes.end(), states, state);
              const auto& shapes = facts.factored && !vectors ? matrices : elementwise;
              std::printf("%s p%d g%d s%d %s %s %016llx\n", facts.name, p, g, state,
                          strange ? "strange" : "usual", vectors ? "vectors" : "tensors",
                          static_cast<unsigned long long>(run(rule, vectors, dtypes, shapes, strange)));
            }
}
