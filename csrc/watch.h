// Tells whether the tensors of a plan are still where they were: the hot path of a step's host time.
#pragma once

#include <Python.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tensor_memory.h"

namespace fusedstep {

// Rows of numbers, each kept once.
class Rows {
 public:
  int32_t place(const std::vector<int64_t>& row);
  const int64_t* at(int32_t place) const { return numbers_.data() + place; }
  size_t count() const { return places_.size(); }

 private:
  std::map<std::vector<int64_t>, int32_t> places_;
  std::vector<int64_t> numbers_;
};

// Remembers every parameter of the groups, its gradient, its state dict and the tensors in it, by
// identity, address, dtype, device, sizes, strides and whether they are negated or conjugated. Whoever
// owns a Watch keeps parameters and state dicts alive. Gradients may move, go, and come back as they
// were: their cells in a table are kept up to date, and hold 0 while there is no gradient.
class Watch {
 public:
  // Finds out on samples how tensors lie in memory, as TensorMemory says; whether that can be told.
  static bool get_ready(PyObject* exchange_api, PyObject* samples);
  static bool is_ready();

  // How a gradient lay that is absent now.
  struct Layout {
    int64_t code, bits;  // of its dtype, as DLPack has them
    bool negated;
    std::vector<int64_t> strides;
  };
  using Layouts = std::vector<std::optional<Layout>>;

  // `cells` holds, for each parameter, where its gradient's address belongs in a table, or 0; `earlier`
  // the layouts of gradients that were seen before, where they are known.
  // Raises a Python exception where a tensor cannot be looked at.
  Watch(PyObject* exchange_api, PyObject* param_lists, PyObject* state, PyObject* keys,
        std::vector<int64_t> cells, const Layouts& earlier);

  // Added to what `check` returns if a gradient came or went.
  static constexpr int64_t kCameOrWent = int64_t(1) << 40;

  // The number of gradients that moved; -1 if anything changed that a plan does not survive. Cells of
  // gradients that moved, came or went are written.
  int64_t check(PyObject* param_lists, PyObject* state);

  // Of each parameter 1 if it had a gradient when it was last checked, else 0.
  const std::string& present() const { return present_; }

 private:
  // A tensor as it was last seen. Rows are shared by tensors that are alike.
  struct Seen {
    PyObject* object;
    const char *body, *storage;
    int64_t data;    // of the storage; the tensor's own address if there is no row of words
    int32_t words;   // a row: its type, its address less the data's, dimensions, then its words
    int32_t layout;  // a row of what DLPack says of it
  };
  struct Dict {
    PyObject* object;
    const char* keys;
  };
  struct Recorder;
  struct Comparer;

  // Walks everything in a fixed order: one visitor records, the other one compares.
  template <class Visit>
  bool walk(PyObject* param_lists, PyObject* state, Visit& visit);

  void note(Seen& seen, PyObject* object, const DlTensor& t);
  bool record(PyObject* object);
  void record_absent(const Seen& param, const std::optional<Layout>& layout);
  int64_t address_of(const Seen& seen) const {
    return seen.data + (seen.words < 0 ? 0 : words_.at(seen.words)[1]);
  }
  // Whether a tensor is as it was seen, but for its address, which is returned.
  bool matches(Seen& seen, PyObject* object, int64_t& address);
  bool matches_in_full(Seen& seen, PyObject* object, int64_t& address);

  DlFromObject from_object_;
  std::vector<PyObject*> keys_;
  std::vector<int64_t> cells_;
  std::vector<int64_t> facts_;  // what is not a tensor
  std::vector<Seen> seen_;
  std::vector<Dict> dicts_;
  std::string present_;
  Rows words_, layouts_;
  bool over_ = false;  // something changed, and what was seen since is not what the plan holds
};

}  // namespace fusedstep
