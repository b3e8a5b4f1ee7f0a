// The Python module fusedstep._native: the CPU walkers and the watch, over plain addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "cpu/threads.h"
#include "cpu/work.h"
#include "watch.h"

namespace py = pybind11;

namespace fusedstep {
namespace {

int active_level = -1;

void use_level(const std::string& name) {
  for (int k = 0; k < kLevelCount; ++k) {
    if (kLevels[k].runs_here() && (name.empty() || name == kLevels[k].name)) {
      active_level = k;
      return;
    }
  }
  throw std::invalid_argument("the CPU walkers have no level '" + name + "' on this machine");
}

struct FreeDeleter {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, FreeDeleter>;

Memory allocate(int64_t bytes) {
  if (bytes == 0) return nullptr;
  void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (memory == nullptr) throw std::bad_alloc();
  return Memory(static_cast<char*>(memory));
}

// A table of the host that torch made as a fake tensor has no address.
void require(int64_t table) {
  if (table == 0) throw std::invalid_argument("no step can be taken under torch's FakeTensorMode");
}

// A launch with its work list and scratch. The table belongs to the caller and outlives the bucket.
class Bucket {
 public:
  Bucket(int64_t rule, bool wide, bool vectors, const std::vector<int64_t>& dtypes, int64_t table,
         int64_t tensors, int64_t fields) {
    if (dtypes.size() > size_t(kMaxSlots)) throw std::invalid_argument("too many slots");
    require(table);
    if (rule < 0 || rule >= kRuleCount) throw std::invalid_argument("there is no such rule");
    launch_.rule = rule, launch_.wide = wide, launch_.vectors = vectors, launch_.fields = fields;
    launch_.table = reinterpret_cast<const int64_t*>(table);
    for (size_t k = 0; k < dtypes.size() && k < size_t(kMaxSlots); ++k) launch_.dtypes[k] = dtypes[k];
    work_ =
        kRules[rule].factored ? factored_work(launch_, tensors) : elementwise_work(launch_, tensors);
    work_.thread_bytes = (work_.thread_bytes + 63) / 64 * 64;
    launch_.entries = reinterpret_cast<const int64_t*>(work_.entries.data());
    launch_.runs = work_.runs.data();
    launch_.phases = work_.phases.data();
    launch_.n_phases = int64_t(work_.phases.size()) - 1;
    launch_.scratch_of = work_.scratch_of.data();
    launch_.thread_bytes = work_.thread_bytes;
  }

  // Allocates what a launch on so many threads needs, so that no step fails half done.
  void reserve(int64_t threads) {
    if (!scratch_) scratch_ = allocate(work_.scratch_bytes);
    if (threads > threads_) {
      thread_scratch_ = allocate(threads * work_.thread_bytes);
      threads_ = threads;
    }
  }

  int64_t scratch_bytes(int64_t threads) const {
    return work_.scratch_bytes + threads * work_.thread_bytes;
  }

  void launch(int64_t row_of, int64_t scalars, int64_t row_length, double grad_scale, int64_t threads) {
    require(row_of), require(scalars);
    py::gil_scoped_release unlocked;
    reserve(threads);
    launch_.scratch = scratch_.get();
    launch_.thread_scratch = thread_scratch_.get();
    launch_.row_of = reinterpret_cast<const int64_t*>(row_of);
    launch_.scalars = reinterpret_cast<const double*>(scalars);
    launch_.row_length = row_length;
    launch_.grad_scale = grad_scale;
    launch_.threads = threads;
    carry_out(launch_, kLevels[active_level].find(launch_));
  }

 private:
  Launch launch_;
  Work work_;
  Memory scratch_, thread_scratch_;
  int64_t threads_ = 0;
};

Watch make_watch(py::object api, py::list param_lists, py::dict state, py::tuple keys,
                 std::vector<int64_t> cells) {
  Watch watch(api.ptr(), param_lists.ptr(), state.ptr(), keys.ptr(), std::move(cells));
  if (PyErr_Occurred()) throw py::error_already_set();
  return watch;
}

PYBIND11_MODULE(_native, module) {
  use_level("");
  module.attr("FINGERPRINT") = kFingerprint;
  module.def("use_level", &use_level);
  module.def("active_level", [] { return kLevels[active_level].name; });
  module.def("levels", [] {
    std::vector<std::string> names;
    for (int k = 0; k < kLevelCount; ++k)
      if (kLevels[k].runs_here()) names.push_back(kLevels[k].name);
    return names;
  });
  module.def("has_pool", &has_pool);
  py::class_<Bucket>(module, "Bucket")
      .def(py::init<int64_t, bool, bool, const std::vector<int64_t>&, int64_t, int64_t, int64_t>())
      .def("reserve", &Bucket::reserve)
      .def("scratch_bytes", &Bucket::scratch_bytes)
      .def("launch", &Bucket::launch);
  module.def("can_watch", [](py::object api) { return Watch::usable(api.ptr()); });
  py::class_<Watch>(module, "Watch")
      .def(py::init(&make_watch))
      .def("check", [](Watch& watch, py::list param_lists, py::dict state) {
        return watch.check(param_lists.ptr(), state.ptr());
      });
}

}  // namespace
}  // namespace fusedstep
