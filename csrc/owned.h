// A reference to a Python object, which is given back.
#pragma once

#include <Python.h>

#include <memory>

namespace fusedstep {

struct Decref {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Decref>;

}  // namespace fusedstep
