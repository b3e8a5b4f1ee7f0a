// Looks into DTensors: at the tensor in this process, and at how it is spread over processes.
#pragma once

#include <Python.h>

#include <memory>

namespace fusedstep {

struct Decref {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Decref>;

// A DTensor is a Python object with two slots: the local tensor, and a spec with mesh and placements.
// The class says where its objects keep them.
class Sharded {
 public:
  // `dtensor` and `tensor` are types. `local` is the Python function that returns the local tensor of
  // a DTensor, and waits until a collective has made it.
  bool learn(PyObject* dtensor, PyObject* tensor, PyObject* local);

  bool holds(PyObject* object) const {
    return dtensor_ != nullptr && PyType_IsSubtype(Py_TYPE(object), dtensor_);
  }
  // The tensor in this process. Null if there is none.
  Owned local(PyObject* dtensor) const {
    PyObject* own = slot(dtensor, local_place_);
    if (own == nullptr || Py_TYPE(own) != tensor_) return awaited(dtensor);
    Py_INCREF(own);
    return Owned(own);
  }
  // Borrowed. Null if there is none.
  PyObject* spec(PyObject* dtensor) const { return slot(dtensor, spec_place_); }
  // Whether two specs have the same mesh and placements. Takes 1 us, while the specs of one tensor
  // are mostly the same object.
  static bool alike(PyObject* spec, PyObject* other);

 private:
  static PyObject* slot(PyObject* object, Py_ssize_t place) {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + place);
  }
  Owned awaited(PyObject* dtensor) const;

  PyTypeObject *dtensor_ = nullptr, *tensor_ = nullptr;  // never freed
  PyObject* wait_ = nullptr;
  Py_ssize_t local_place_ = 0, spec_place_ = 0;
};

// What this process learned.
extern Sharded sharded;

}  // namespace fusedstep
