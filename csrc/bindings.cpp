// The Python module fusedstep._native: the CPU walkers and the watch. They take plain addresses.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "binding.h"
#include "checks.h"
#include "copies.h"
#include "cpu/threads.h"
#include "cpu/work_list.h"
#include "rules/facts.h"
#include "sharded.h"
#include "versions.h"
#include "watch.h"

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
std::unique_ptr<Copies> make_copies(std::vector<std::tuple<int64_t, int64_t, int64_t>> numbers) {
  std::vector<Copies::Run> runs;
  for (const auto& [source, place, bytes] : numbers) {
    require(source), require(place);
    runs.push_back({reinterpret_cast<char*>(source), reinterpret_cast<char*>(place), bytes});
  }
  return std::make_unique<Copies>(std::move(runs));
}

std::unique_ptr<Watch> make_watch(List param_lists, Dict state, PyObject* keys,
                                  std::vector<int64_t> cells, Watch::Layouts earlier) {
  auto watch =
      std::make_unique<Watch>(param_lists.object, state.object, keys, std::move(cells), earlier);
  if (PyErr_Occurred()) throw Raised();
  return watch;
}

const char* level_in_use() { return kLevels[active_level].name; }

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (int k = 0; k < kLevelCount; ++k)
    if (kLevels[k].runs_here()) names.push_back(kLevels[k].name);
  return names;
}

bool learn_to_watch(PyObject* source, List samples) { return Watch::get_ready(source, samples.object); }
bool learn_dtensors(PyObject* dtensor, PyObject* tensor, PyObject* local) {
  return sharded.learn(dtensor, tensor, local);
}
bool learn_to_increment(int64_t function, PyObject* sample) { return versions.learn(function, sample); }
void increment_versions(List tensors) { versions.increment(tensors.object); }

// What Python sees.
PyMethodDef functions[] = {def<&use_level>("use_level"),
                           def<&level_in_use>("active_level"),
                           def<&levels>("levels"),
                           def<&has_pool>("has_pool"),
                           def<&Watch::is_ready>("can_watch"),
                           def<&learn_to_watch>("learn_to_watch"),
                           def<&learn_dtensors>("learn_dtensors"),
                           def<&learn_to_increment>("learn_to_increment"),
                           def<&increment_versions>("increment_versions"),
                           {}};
PyMethodDef of_bucket[] = {def<&Bucket::reserve>("reserve"),
                           def<&Bucket::scratch_bytes>("scratch_bytes"),
                           def_unlocked<&Bucket::launch>("launch"),
                           {}};
PyMethodDef of_floor[] = {def_unlocked<&Floor::walk>("walk"), {}};
PyMethodDef of_squares[] = {def<&Squares::pieces>("pieces"), def_unlocked<&Squares::walk>("walk"), {}};
PyMethodDef of_copies[] = {def<&Copies::there>("there"), def<&Copies::back>("back"), {}};
PyMethodDef of_watch[] = {def<&Watch::check>("check"), def<&Watch::present>("present"), {}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace fusedstep

PyMODINIT_FUNC PyInit__native() {
  using namespace fusedstep;
  return make_module(definition, [](PyObject* module) {
    use_level("");
    add_constant(module, "FINGERPRINT", fingerprint());
    add_constant(module, "CAME_OR_WENT", Watch::kCameOrWent);
    using Numbers = std::vector<int64_t>;
    // What comes after `fields` may be left out.
    add_class<&make<Bucket, int64_t, bool, bool, Numbers, Numbers, int64_t, int64_t, int64_t, int64_t,
                    int64_t, int64_t, int64_t, bool, bool>,
              8>(module, "fusedstep._native.Bucket", of_bucket);
    add_class<&make<Floor, int64_t, int64_t, int64_t, int64_t>, 4>(module, "fusedstep._native.Floor",
                                                                   of_floor);
    add_class<&make<Squares, int64_t, int64_t, int64_t, Numbers>, 4>(
        module, "fusedstep._native.Squares", of_squares);
    add_class<&make_copies, 1>(module, "fusedstep._native.Copies", of_copies);
    add_class<&make_watch, 5>(module, "fusedstep._native.Watch", of_watch);
  });
}
