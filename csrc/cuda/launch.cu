// Launches a bucket's kernels on a stream. Nothing here allocates device memory or waits.
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>

#include "../rules/facts.h"
#include "../rules/fingerprint.h"
#include "instances.h"

#if !defined(FUSEDSTEP_CUDA_ARCHITECTURES)
#define FUSEDSTEP_CUDA_ARCHITECTURES "unknown architectures"
#endif

namespace fusedstep::cuda {
namespace {

[[noreturn]] void fail(cudaError_t status, const std::string& what, const char* remark = "") {
  cudaGetLastError();  // clears the error, so the next call does not report it again
  throw std::runtime_error(what + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status) +
                           remark);
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(status, what);
}

std::string name_of(int unit) { return kUnitNames[unit]; }
constexpr const char* kSquares = "the norm of the gradients";

// Makes a device current in this module's CUDA runtime, and restores the previous one at the end.
// torch, which has a runtime of its own, has made the same device current: then nothing is set.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device == before_) return;
    const cudaError_t status = cudaSetDevice(device);
    if (status != cudaSuccess) fail(status, "cudaSetDevice to device " + std::to_string(device));
    changed_ = true;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Loads a kernel now. CUDA would load it at its first launch, which may be in a capture: the step
// before may have had no work for it.
void load(const Kernel& kernel, const std::string& name) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel.function);
  if (status != cudaSuccess) fail(status, name + " could not be loaded");
}

void check_count(int64_t count, const std::string& name) {
  if (count < 1 || count > INT32_MAX)
    throw std::invalid_argument(name + " has " + std::to_string(count) +
                                " entries, and one launch can have 1 to 2147483647");
}

void check_start(cudaError_t status, const std::string& name, int64_t blocks) {
  if (status != cudaSuccess)
    fail(status, name + " could not be launched on " + std::to_string(blocks) + " blocks",
         " (unless this is the error of an earlier kernel)");
}

// Whether a kernel can be scheduled before the one that it waits for has ended.
bool can_overlap(int device) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  return major >= 9;
}

// With `overlaps`, see wait_for_kernel_before.
cudaError_t start(const Kernel& kernel, int64_t blocks, const KernelArgs& args, cudaStream_t queue,
                  bool overlaps) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config = {dim3(unsigned(blocks)),
                                     dim3(unsigned(kernel.threads)),
                                     size_t(kernel.shared_bytes),
                                     queue,
                                     &early,
                                     overlaps ? 1u : 0u};
  return cudaLaunchKernelEx(&config, kernel.function, args);
}

template <class T>
const T* at(int64_t address) {
  return reinterpret_cast<const T*>(address);
}

// Only slots that kernels read and write as large as the parameter may be stored in other ways than in
// a dtype.
void check_code(const std::vector<int>& codes, const std::vector<int>& companions, int kind,
                size_t slot, bool has_noise) {
  const int code = codes[slot];
  const std::string said = "slot " + std::to_string(slot) + " has the code " + std::to_string(code);
  if (code < 0 || code > kBentUint8)
    throw std::invalid_argument(said +
                                ", but kernels know 0 (float32), 1 (bfloat16), 2 (float16), 3 "
                                "(float64) and ways of storage up to " +
                                std::to_string(kBentUint8));
  const int place = companions[slot], slots = int(codes.size());
  int tensors = slots;
  for (const int other : companions) tensors += other != 0;
  if (kCompanionBytes[code] > 0 ? place < slots || place >= tensors : place != 0)
    throw std::invalid_argument(said + ", which does not fit its companion");
  if (code == kNoisyBfloat16 && !has_noise)
    throw std::invalid_argument(said + ", but there is no noise");
  const size_t first_state = kind == 0   ? size_t(ElementwiseRow::kStates)
                             : kind == 1 ? size_t(MatrixRow::kMomentum)
                                         : size_t(VectorRow::kMomentum);
  const bool is_parameter = slot == 0, is_state = slot >= first_state;
  const bool fits = is_dtype(code) || (code == kNoisyBfloat16 && (is_parameter || is_state)) ||
                    (is_parameter && code < kBentInt8) || (is_state && code >= kBentInt8 && kind != 2);
  if (!fits) throw std::invalid_argument(said + ", and no kernel knows it there");
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::string built_for() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return std::string(FUSEDSTEP_CUDA_ARCHITECTURES) + "; CUDA " + std::to_string(version / 1000) + "." +
         std::to_string(version % 1000 / 10);
}

const char* fingerprint() { return kFingerprint; }

std::string why_unusable(int device) {
  try {
    const OnDevice on(device);
    const int32_t dtypes[kMaxSlots] = {};
    cudaFuncAttributes attributes;
    const cudaError_t status =
        cudaFuncGetAttributes(&attributes, elementwise_kernel(kAccumulate, false, dtypes).function);
    if (status != cudaSuccess) fail(status, "its kernels were built for " + built_for());
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

Bucket::Bucket(int rule, bool in_double, int kind, const std::vector<int>& codes,
               const std::vector<int>& companions, int fields, int row_length, int device,
               int64_t noise)
    : rule_(rule), kind_(kind), in_double_(in_double), device_(device) {
  if (rule < 0 || rule >= kRuleCount) throw std::invalid_argument("there is no such rule");
  if (codes.size() > size_t(kMaxSlots)) throw std::invalid_argument("too many slots");
  const int sizes = kind == 0   ? ElementwiseRow::kSizes
                    : kind == 1 ? MatrixRow::kSizes
                                : VectorRow::kSizes;
  int cells = int(codes.size()) + sizes;
  for (const int place : companions) cells += place != 0;
  if (fields != cells || companions.size() != codes.size())
    throw std::invalid_argument("a table with rows of " + std::to_string(fields) +
                                " numbers does not belong to " + std::to_string(codes.size()) +
                                " slots");
  for (size_t k = 0; k < codes.size(); ++k) {
    check_code(codes, companions, kind, k, noise != 0);
    args_.dtypes[k] = codes[k];
    args_.companions[k] = companions[k];
  }
  args_.noise = at<int64_t>(noise);
  args_.fields = fields;
  args_.row_length = row_length;
  args_.vectors = kind == 2;
}

void Bucket::set_scratch(int64_t cuts, int64_t partials, int64_t sums) {
  args_.cuts = at<Cut>(cuts);
  args_.partials = reinterpret_cast<void*>(partials);
  args_.sums = reinterpret_cast<double*>(sums);
}

void Bucket::set_exchange(int64_t sums, int64_t of_tensors) {
  args_.exchange = reinterpret_cast<double*>(sums);
  args_.of_tensors = reinterpret_cast<OfTensor*>(of_tensors);
}

void Bucket::add(int unit, int width, bool aligned, int64_t entries, int64_t count) {
  const int momentum_slot = kRules[rule_].states == 0 ? 0
                            : kind_ == 1              ? MatrixRow::kMomentum
                                                      : VectorRow::kMomentum;
  const Kernel kernel =
      Unit(unit) == Unit::kElementwise
          ? elementwise_kernel(rule_, in_double_, args_.dtypes)
          : phase_kernel(Unit(unit), momentum_slot, in_double_, width, aligned, args_.dtypes);
  if (kernel.function == nullptr)
    throw std::invalid_argument("there is no kernel for " + name_of(unit) + " of this rule");
  check_count(count, name_of(unit));
  const OnDevice on(device_);
  load(kernel, name_of(unit));
  can_overlap_ = can_overlap(device_);
  launches_.push_back({unit, kernel, entries, count});
}

void Bucket::launch(int64_t table, int64_t scalar_row_of, int64_t scalars, int64_t controls,
                    int64_t stream, int64_t idle, int64_t values) const {
  const OnDevice on(device_);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  KernelArgs args = args_;
  args.table = at<int64_t>(table);
  args.scalar_row_of = at<int64_t>(scalar_row_of);
  if (values > kValues) throw std::invalid_argument("too many scalars for a launch");
  args.scalars = values > 0 ? nullptr : at<double>(scalars);
  if (values > 0) std::memcpy(args.values, at<double>(scalars), size_t(values) * sizeof(double));
  args.controls = at<double>(controls);
  bool follows = false;  // a kernel of this step; others do not know that somebody may wait
  for (const KernelLaunch& next : launches_) {
    if (idle >> next.unit & 1) continue;
    args.entries = at<int32_t>(next.entries);
    const cudaError_t status = start(next.kernel, next.blocks, args, queue, follows && can_overlap_);
    follows = true;
    check_start(status, name_of(next.unit), next.blocks);
  }
}

void Bucket::set_squares(int64_t entries, int64_t count, int64_t elements) {
  const Kernel kernel = squares_kernel(args_.dtypes[ElementwiseRow::kG]);
  check_count(count, kSquares);
  const OnDevice on(device_);
  load(kernel, kSquares);
  squares_ = {-1, kernel, entries, count};
  args_.elements = at<int64_t>(elements);
}

void Bucket::launch_squares(int64_t table, int64_t sums, int64_t stream) const {
  const OnDevice on(device_);
  KernelArgs args = args_;
  args.table = at<int64_t>(table);
  args.entries = at<int32_t>(squares_.entries);
  args.sums = reinterpret_cast<double*>(sums);
  check_start(
      start(squares_.kernel, squares_.blocks, args, reinterpret_cast<cudaStream_t>(stream), false),
      kSquares, squares_.blocks);
}

}  // namespace fusedstep::cuda
