// The Python module fusedstep._native: the CPU walkers and the watch. They take plain addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "checks.h"
#include "copies.h"
#include "cpu/threads.h"
#include "cpu/work_list.h"
#include "rules/facts.h"
#include "sharded.h"
#include "versions.h"
#include "watch.h"

namespace py = pybind11;

namespace fusedstep {
namespace {

int active_level = -1;
Versions versions;

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

// A launch with its work list and scratch. The caller owns the table, which outlives the bucket.
class Bucket {
 public:
  Bucket(int64_t rule, bool in_float64, bool vectors, const std::vector<int64_t>& dtypes,
         const std::vector<int64_t>& companions, int64_t table, int64_t tensors, int64_t fields,
         int64_t noise, int64_t sums, int64_t sums_of, int64_t of_tensors, bool split_columns,
         bool flat) {
    require(table);
    require_known(rule, vectors, dtypes, companions, fields, noise != 0);
    launch_.rule = rule, launch_.in_float64 = in_float64, launch_.vectors = vectors,
    launch_.fields = fields;
    launch_.table = reinterpret_cast<const int64_t*>(table);
    launch_.exchange = {reinterpret_cast<double*>(sums), reinterpret_cast<const int64_t*>(sums_of),
                        reinterpret_cast<OfTensor*>(of_tensors), split_columns, flat};
    std::copy(dtypes.begin(), dtypes.end(), launch_.dtypes);
    std::copy(companions.begin(), companions.end(), launch_.companions);
    launch_.noise = reinterpret_cast<const int64_t*>(noise);
    work_ = !kRules[rule].factored ? elementwise_work(launch_, tensors)
            : flat                 ? flat_work(launch_, tensors)
            : sums != 0            ? exchanged_work(launch_, tensors)
                                   : factored_work(launch_, tensors);
    work_.thread_bytes = (work_.thread_bytes + 63) / 64 * 64;
    launch_.entries = reinterpret_cast<const int64_t*>(work_.entries.data());
    launch_.runs = work_.runs.data();
    launch_.rounds = work_.rounds.data();
    launch_.scratch_of = work_.scratch_of.data();
    launch_.thread_bytes = work_.thread_bytes;
    if (work_.stages.size() == 1) work_.end_stage();
  }

  // Allocates what a launch on `threads` threads needs, so that no step fails half done.
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

  // Runs one stage: 0, or 0 to 3 for an exchanged bucket.
  void launch(int64_t scalar_row_of, int64_t scalars, int64_t row_length, double grad_scale,
              int64_t threads, int64_t stage) {
    launch_.first_round = work_.stages.at(stage), launch_.end_round = work_.stages.at(stage + 1);
    require(scalar_row_of), require(scalars);
    py::gil_scoped_release unlocked;
    reserve(threads);
    launch_.scratch = scratch_.get();
    launch_.thread_scratch = thread_scratch_.get();
    launch_.scalar_row_of = reinterpret_cast<const int64_t*>(scalar_row_of);
    launch_.scalars = reinterpret_cast<const double*>(scalars);
    launch_.row_length = row_length;
    launch_.grad_scale = grad_scale;
    launch_.threads = threads;
    carry_out(launch_, kLevels[active_level].find(launch_));
  }

 private:
  LaunchArgs launch_;
  WorkList work_;
  Memory scratch_, thread_scratch_;
  int64_t threads_ = 0;
};

// The benchmark's floor over tensors whose elements have `item_bytes` bytes. The caller owns the
// table of elementwise rows, which outlives it.
class Floor {
 public:
  Floor(int64_t item_bytes, int64_t table, int64_t tensors, int64_t fields)
      : walk_(kLevels[active_level].find_floor(item_bytes)) {
    require(table);
    if (walk_ == nullptr)
      throw std::invalid_argument("item_bytes should be 2, 4 or 8 but is: " +
                                  std::to_string(item_bytes));
    const int64_t slots = elementwise_slots(fields);
    if (slots < ElementwiseRow::kStates || slots > kMaxSlots)
      throw std::invalid_argument("fields should be from " +
                                  std::to_string(ElementwiseRow::kStates + ElementwiseRow::kSizes) +
                                  " to " + std::to_string(kMaxSlots + ElementwiseRow::kSizes) +
                                  " but is: " + std::to_string(fields));
    launch_.table = reinterpret_cast<const int64_t*>(table);
    launch_.fields = fields;
    work_ = elementwise_work(launch_, tensors);
    launch_.entries = reinterpret_cast<const int64_t*>(work_.entries.data());
    launch_.runs = work_.runs.data();
    launch_.rounds = work_.rounds.data();
    launch_.end_round = int64_t(work_.rounds.size()) - 1;
  }

  void walk(int64_t threads) {
    py::gil_scoped_release unlocked;
    launch_.threads = threads;
    carry_out(launch_, walk_);
  }

 private:
  Walk walk_;
  LaunchArgs launch_;
  WorkList work_;
};

// The sums of squares of a bucket's gradients, piece by piece. The caller owns the bucket's table and
// the sums, which outlive it.
class Squares {
 public:
  Squares(int64_t dtype, int64_t table, int64_t fields, std::vector<int64_t> elements)
      : elements_(std::move(elements)) {
    require(table);
    require_code(dtype, kFloat64 + 1);
    walk_ = kLevels[active_level].find_squares(dtype);
    launch_.table = reinterpret_cast<const int64_t*>(table);
    launch_.fields = fields;
    launch_.elements = elements_.data();
    work_ = elementwise_work(launch_, int64_t(elements_.size()));
    for (int64_t n : elements_) {
      work_.scratch_of.push_back(pieces_);
      pieces_ += (n + kCpuRun - 1) / kCpuRun;
    }
    launch_.scratch_of = work_.scratch_of.data();
    launch_.entries = reinterpret_cast<const int64_t*>(work_.entries.data());
    launch_.runs = work_.runs.data();
    launch_.rounds = work_.rounds.data();
    launch_.end_round = int64_t(work_.rounds.size()) - 1;
  }

  int64_t pieces() const { return pieces_; }

  // Writes a float64 number for each piece of the tensors that have gradients.
  void walk(int64_t sums, int64_t threads) {
    require(sums);
    py::gil_scoped_release unlocked;
    launch_.scratch = reinterpret_cast<char*>(sums);
    launch_.threads = threads;
    carry_out(launch_, walk_);
  }

 private:
  std::vector<int64_t> elements_;
  int64_t pieces_ = 0;
  Walk walk_;
  LaunchArgs launch_;
  WorkList work_;
};

// From the addresses of each pair, and its bytes.
std::unique_ptr<Copies> make_copies(const std::vector<std::array<int64_t, 3>>& numbers) {
  std::vector<Copies::Run> runs;
  for (const auto& [source, place, bytes] : numbers) {
    require(source), require(place);
    runs.push_back({reinterpret_cast<char*>(source), reinterpret_cast<char*>(place), bytes});
  }
  return std::make_unique<Copies>(std::move(runs));
}

std::unique_ptr<Watch> make_watch(py::object api, py::list param_lists, py::dict state, py::tuple keys,
                                  std::vector<int64_t> cells, const Watch::Layouts& earlier) {
  auto watch = std::make_unique<Watch>(api.ptr(), param_lists.ptr(), state.ptr(), keys.ptr(),
                                       std::move(cells), earlier);
  if (PyErr_Occurred()) throw py::error_already_set();
  return watch;
}

PYBIND11_MODULE(_native, module) {
  use_level("");
  module.attr("FINGERPRINT") = fingerprint();
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
      .def(py::init<int64_t, bool, bool, const std::vector<int64_t>&, const std::vector<int64_t>&,
                    int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool>(),
           py::arg("rule"), py::arg("in_float64"), py::arg("vectors"), py::arg("dtypes"),
           py::arg("companions"), py::arg("table"), py::arg("tensors"), py::arg("fields"),
           py::arg("noise") = 0, py::arg("sums") = 0, py::arg("sums_of") = 0, py::arg("of_tensors") = 0,
           py::arg("split_columns") = false, py::arg("flat") = false)
      .def("reserve", &Bucket::reserve)
      .def("scratch_bytes", &Bucket::scratch_bytes)
      .def("launch", &Bucket::launch);
  py::class_<Floor>(module, "Floor")
      .def(py::init<int64_t, int64_t, int64_t, int64_t>(), py::arg("item_bytes"), py::arg("table"),
           py::arg("tensors"), py::arg("fields"))
      .def("walk", &Floor::walk);
  py::class_<Squares>(module, "Squares")
      .def(py::init<int64_t, int64_t, int64_t, std::vector<int64_t>>())
      .def("pieces", &Squares::pieces)
      .def("walk", &Squares::walk);
  py::class_<Copies>(module, "Copies")
      .def(py::init(&make_copies))
      .def("there", &Copies::there)
      .def("back", &Copies::back);
  module.def("can_watch", &Watch::is_ready);
  module.def("learn_to_watch", [](py::object api, py::list samples) {
    return Watch::get_ready(api.ptr(), samples.ptr());
  });
  module.def("learn_dtensors", [](py::object dtensor, py::object tensor, py::object local) {
    return sharded.learn(dtensor.ptr(), tensor.ptr(), local.ptr());
  });
  module.def("learn_to_increment", [](int64_t function, py::object sample) {
    return versions.learn(function, sample.ptr());
  });
  module.def("increment_versions", [](py::list tensors) { versions.increment(tensors.ptr()); });
  py::class_<Watch> watch(module, "Watch");
  py::class_<Watch::Layout>(watch, "Layout")
      .def(py::init<int64_t, int64_t, bool, std::vector<int64_t>>());
  watch.attr("CAME_OR_WENT") = Watch::kCameOrWent;
  watch.def(py::init(&make_watch))
      .def("check", [](Watch& watch, py::list param_lists,
                       py::dict state) { return watch.check(param_lists.ptr(), state.ptr()); })
      .def("present", [](const Watch& watch) { return py::bytes(watch.present()); });
}

}  // namespace
}  // namespace fusedstep
