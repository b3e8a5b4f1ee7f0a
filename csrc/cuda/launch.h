// The host side of the CUDA backend: picks a bucket's kernels and launches them. No CUDA header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernel_args.h"

namespace fusedstep::cuda {

// A kernel built for a bucket's rule and dtypes.
struct Kernel {
  void (*function)(KernelArgs) = nullptr;
  int threads = 0;
  int64_t shared_bytes = 0;
};

int device_count();
std::string built_for();
// The hash of the rules that the module was built from.
const char* fingerprint();
// Empty, or the reason why kernels cannot run on the device.
std::string why_unusable(int device);

// A bucket's kernel launches. python/fusedstep/backends/cuda.py fills them in once and launches
// them every step. The caller owns all memory. A CUDA error is an exception that names the kernel.
class Bucket {
 public:
  // `kind` is 0 for elementwise rules, 1 for matrices, 2 for vectors. `codes` say how slots are stored,
  // `companions` where companions are in a row of the table, or 0. `noise` has a NoiseRow for each
  // tensor, or is 0.
  Bucket(int rule, bool in_double, int kind, const std::vector<int>& codes,
         const std::vector<int>& companions, int fields, int row_length, int device, int64_t noise);

  void set_scratch(int64_t cuts, int64_t partials, int64_t sums);
  // The buffers that processes add up between the stages of a step.
  void set_exchange(int64_t sums, int64_t of_tensors);
  // Appends a launch of one kind of work with `count` entries. Kernels load 16 bytes of parameter,
  // gradient and momentum at once if the matrices are `aligned`.
  void add(int unit, int width, bool aligned, int64_t entries, int64_t count);
  // Runs a step, except the units whose bits are set in `idle`. The bucket's device is current. If
  // `values` is not 0, so many numbers at `scalars` are on the host, and go with each launch.
  void launch(int64_t table, int64_t scalar_row_of, int64_t scalars, int64_t controls, int64_t stream,
              int64_t idle, int64_t values) const;

  // The sums of squares of the gradients: one for each entry, written to `sums`.
  void set_squares(int64_t entries, int64_t count, int64_t elements);
  void launch_squares(int64_t table, int64_t sums, int64_t stream) const;

 private:
  struct KernelLaunch {
    int unit;
    Kernel kernel;
    int64_t entries, blocks;
  };

  int rule_, kind_;
  bool in_double_;
  int device_;
  bool can_overlap_ = false;
  KernelArgs args_ = {};
  std::vector<KernelLaunch> launches_;
  KernelLaunch squares_ = {};
};

}  // namespace fusedstep::cuda
