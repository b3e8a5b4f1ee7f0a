// Looks into DTensors: at the tensor in this process, and at how it is spread over processes.
#pragma once

#include <Python.h>

#include "owned.h"

namespace fusedstep {

// A DTensor is a Python object with two slots: the local tensor, and a spec with mesh and placements.
class Sharded {
 public:
  // `dtensor` and `tensor` are types. `local` is the Python function that returns the local tensor of
  // a DTensor, and waits until a collective has made it.
  bool learn(PyObject* dtensor, PyObject* tensor, PyObject* local);

  bool holds(PyObject* object) const {
    return dtensor_ != nullptr && PyType_IsSubtype(Py_TYPE(object), dtensor_);
  }
  // The tensor in this process. Null if there is none.
  Owned local(PyObject* dtensor) {
    Owned own = local_.of(dtensor);
    return own && Py_TYPE(own.get()) == tensor_ ? std::move(own) : awaited(dtensor);
  }
  // Null if there is none.
  Owned spec(PyObject* dtensor) { return spec_.of(dtensor); }
  // Whether two specs have the same mesh and placements. Takes 1 us, while the specs of one tensor
  // are mostly the same object.
  static bool alike(PyObject* spec, PyObject* other);

 private:
  // Reads a slot of objects. The class has a member for it, whose call takes 10 ns. Where objects keep
  // the slot takes none, but the limited API does not tell: the first read finds it.
  class Member {
   public:
    bool learn(PyObject* type, const char* name);
    Owned of(PyObject* object) {
      if (place_ == 0) return found_in(object);
      PyObject* own = word(object, place_);
      Py_XINCREF(own);
      return Owned(own);
    }

   private:
    static PyObject* word(PyObject* object, Py_ssize_t place) {
      return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + place);
    }
    Owned found_in(PyObject* object);

    PyObject* member_ = nullptr;  // never freed
    descrgetfunc get_ = nullptr;
    Py_ssize_t end_ = 0;    // of the class's own objects
    Py_ssize_t place_ = 0;  // 0: not found
  };

  Owned awaited(PyObject* dtensor) const;

  PyTypeObject *dtensor_ = nullptr, *tensor_ = nullptr;  // never freed
  PyObject* wait_ = nullptr;
  Member local_, spec_;
};

// What this process learned.
extern Sharded sharded;

}  // namespace fusedstep
