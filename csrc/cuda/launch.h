// The host's side of the CUDA backend: which kernels a bucket needs, and launching them. No CUDA
// header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernel_args.h"

namespace fusedstep::cuda {

// A kernel that was built for a bucket's rule and dtypes.
struct Kernel {
  void (*function)(KernelArgs) = nullptr;
  int threads = 0;
  int64_t shared_bytes = 0;
};

int device_count();
std::string built_for();
// Of the rules that the module was built from.
const char* fingerprint();
// Empty, or why no kernel can run on a device.
std::string why_unusable(int device);

// What the steps of a bucket launch: filled once by python/fusedstep/backends/cuda.py, launched every
// step. Memory belongs to the caller. Every failure of CUDA is an exception that names the kernel.
class Bucket {
 public:
  // `kind` is 0 for elementwise rules, 1 for matrices, 2 for vectors.
  Bucket(int rule, bool wide, int kind, const std::vector<int>& dtypes, int fields, int row_length,
         int device);

  void set_scratch(int64_t cuts, int64_t partials, int64_t sums);
  // The buffers of a bucket whose sums are exchanged between the stages of a step.
  void set_exchange(int64_t sums, int64_t sum_u2);
  // One launch of a kind of work on so many entries, after those that were added before. Of `aligned`
  // matrices, 16 bytes of parameter, gradient and momentum can be loaded at once.
  void add(int unit, int width, bool aligned, int64_t entries, int64_t count);
  // Whether there is a kernel for `waves`.
  bool has_waves() const;
  // The one launch of all work on some matrices, before those that are added.
  void waves(int64_t entries, int64_t count, int64_t counters, int64_t n_counters);
  // Carries out a step, but for the units whose bits are set in `idle`.
  void launch(int64_t table, int64_t row_of, int64_t scalars, int64_t controls, int64_t stream,
              int64_t idle) const;

 private:
  struct KernelLaunch {
    int unit;  // or kWaves
    Kernel kernel;
    int64_t entries, count, blocks;
  };

  int rule_;
  bool wide_;
  int kind_, device_;
  KernelArgs args_ = {};
  int64_t n_counters_ = 0;
  std::vector<KernelLaunch> launches_;
};

}  // namespace fusedstep::cuda
