// Copies many short runs of bytes, there and back, without torch's time for each.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace fusedstep {

class Copies {
 public:
  struct Run {
    char *source, *place;
    int64_t bytes;
  };
  explicit Copies(std::vector<Run> runs) : runs_(std::move(runs)) {}

  void there() const {
    for (const Run& run : runs_) std::memcpy(run.place, run.source, run.bytes);
  }
  void back() const {
    for (const Run& run : runs_) std::memcpy(run.source, run.place, run.bytes);
  }

 private:
  std::vector<Run> runs_;
};

}  // namespace fusedstep
