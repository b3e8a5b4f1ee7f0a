// Tells whether the tensors of a plan are still where they were: the hot path of a step's host time.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

namespace fusedstep {

// Remembers every parameter of the groups, its gradient, its state dict and the tensors in it, by
// identity, address, dtype, device, shape and stride. Whoever owns a Watch keeps parameters and state
// dicts alive; gradients come and go.
//
// It looks at tensors through the function table that torch (2.10 and later) publishes for DLPack,
// which is plain C: no torch header, and 20 to 40 ns a tensor (2 cores of AMD EPYC, 2026-11-21).
class Watch {
 public:
  // Whether the published table is of a version that is understood here.
  static bool usable(PyObject* exchange_api);

  // `cells` holds, for each parameter, where its gradient's address belongs in a table, or 0.
  // Raises a Python exception where a tensor cannot be looked at.
  Watch(PyObject* exchange_api, PyObject* param_lists, PyObject* state, PyObject* keys,
        std::vector<int64_t> cells);

  // The number of gradients that moved, whose cells were written; -1 if anything else changed.
  int64_t check(PyObject* param_lists, PyObject* state);

  // Where an object was last seen, and a place inside what it holds: a tensor's list of sizes, the
  // keys of a dict.
  struct Place {
    char *object, *inside;
  };

 private:
  // Walks everything in a fixed order and appends it to `out`; the same walk compares.
  template <class Visit>
  bool walk(PyObject* param_lists, PyObject* state, Visit&& visit);

  const void* api_;
  std::vector<PyObject*> keys_;
  std::vector<int64_t> cells_;
  std::vector<int64_t> seen_;
  std::vector<Place> places_;
};

}  // namespace fusedstep
