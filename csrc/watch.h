// Checks whether a plan's tensors are where they were. Most of a step's host time is spent here.
#pragma once

#include <Python.h>

#include <cstdint>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "sharded.h"
#include "tensor_memory.h"

namespace fusedstep {

// Rows of numbers. Equal rows are kept once.
class Rows {
 public:
  int32_t place(const std::vector<int64_t>& row);
  const int64_t* at(int32_t place) const { return numbers_.data() + place; }
  size_t count() const { return places_.size(); }

 private:
  std::map<std::vector<int64_t>, int32_t> places_;
  std::vector<int64_t> numbers_;
};

// Remembers every parameter of the groups, its gradient, its state dict and the tensors in it:
// their identity, address, dtype, device, sizes, strides, and whether they are negated or
// conjugated. Of a DTensor it remembers this for the local tensor, and how it is spread. The owner of
// a Watch keeps parameters and state dicts alive. Gradients may move, disappear, and come back with
// the same layout. The watch updates their cells in a table; without a gradient a cell is 0.
class Watch {
 public:
  // Learns the memory layout of tensors from samples (see TensorMemory). Returns whether it could.
  static bool get_ready(PyObject* source, PyObject* samples);
  static bool is_ready();

  // The last layout of a gradient that is absent now: DLPack's code and bits of its dtype, whether it
  // is negated, its strides.
  using Layout = std::tuple<int64_t, int64_t, bool, std::vector<int64_t>>;
  using Layouts = std::vector<std::optional<Layout>>;

  // `cells` has, for each parameter, the place of its gradient's address in a table, or 0.
  // `earlier` has the known layouts of earlier gradients.
  // Raises a Python exception if a tensor cannot be read.
  Watch(PyObject* param_lists, PyObject* state, PyObject* keys, std::vector<int64_t> cells,
        const Layouts& earlier);
  ~Watch();
  Watch(const Watch&) = delete;

  // `check` adds this to its result if a gradient appeared or disappeared.
  static constexpr int64_t kCameOrWent = int64_t(1) << 40;

  // The number of gradients that moved, or -1 if a change needs a new plan. Writes the cells of
  // gradients that moved, appeared or disappeared.
  int64_t check(PyObject* param_lists, PyObject* state);

  // For each parameter: 1 if it had a gradient at the last check, else 0.
  const std::vector<uint8_t>& present() const { return present_; }

 private:
  // A tensor as it was last seen. Tensors that are alike share rows.
  struct Seen {
    PyObject* object;    // null for a gradient
    const char* holder;  // of a gradient that is read in place, else null
    const char *body, *storage;
    int64_t address;
    int32_t words;   // a row: its type, bytes of an element, its words; -1 if the source is asked
    int32_t layout;  // a row: what the source says about it
  };
  // A state dict. Dicts with the same keys in the same order share a row.
  struct Dict {
    PyObject* object;
    const char* table;  // where it keeps keys and values
    int32_t keys;       // a row: its length; then for each entry its key, and whether we look at it
  };
  // A DTensor as it was last seen. After it, `seen_` has its local tensor.
  struct Spread {
    PyObject* object;    // null for a gradient
    PyTypeObject* type;  // null for a gradient that is no DTensor
    PyObject* spec;      // kept alive, so none takes its address
  };
  struct Recorder;
  struct Comparer;

  // Walks everything in a fixed order. One visitor records, the other compares.
  template <class Visit>
  bool walk(PyObject* param_lists, PyObject* state, Visit& visit);

  void note(Seen& seen, PyObject* object, const DlTensor& t);
  bool record(PyObject* object);
  void record_absent(const Seen& param, const std::optional<Layout>& layout, bool in_dtensor);
  // Records how a DTensor is spread, and returns its local tensor.
  Owned record_spread(PyObject* dtensor, bool is_gradient);
  // The local tensor of a DTensor that is spread as it was; null if it is not.
  static Owned local_of(Spread& seen, PyObject* dtensor);
  bool is_empty(int32_t layout) const;
  int32_t keys_in(PyObject* dict);
  // Whether a tensor is unchanged except for its address, which is noted.
  bool matches(Seen& seen, const char* body);
  bool matches_in_full(Seen& seen, PyObject* object);

  PyObject* keys_;                // a tuple
  std::vector<PyObject*> names_;  // the keys of state dicts, kept alive, so none takes their address
  std::vector<int64_t> cells_;
  std::vector<int64_t> facts_;  // everything except tensors
  std::vector<Seen> seen_;
  std::vector<Spread> spreads_;
  std::vector<Dict> dicts_;
  std::vector<uint8_t> present_;
  Rows words_, layouts_, dict_keys_;
  bool over_ = false;  // something changed: the plan is no longer valid
};

}  // namespace fusedstep
