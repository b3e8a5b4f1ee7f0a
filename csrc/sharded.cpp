// Finds the slots of DTensors, and compares their specs.
#include "sharded.h"

#include <initializer_list>
#include <utility>

namespace fusedstep {

Sharded sharded;

bool Sharded::Member::learn(PyObject* type, const char* name) {
  Owned found(PyObject_GetAttrString(type, name));
  if (!found || !Py_IS_TYPE(found.get(), &PyMemberDescr_Type)) return false;
  get_ = reinterpret_cast<descrgetfunc>(PyType_GetSlot(Py_TYPE(found.get()), Py_tp_descr_get));
  member_ = found.release();
  const Owned size(PyObject_GetAttrString(type, "__basicsize__"));
  end_ = size ? PyLong_AsSsize_t(size.get()) : 0;
  return get_ != nullptr && end_ > 0;
}

// One of the object's words is the slot. If only one is what the member reads, that is it.
Owned Sharded::Member::found_in(PyObject* object) {
  Owned own(get_(member_, object, nullptr));
  PyErr_Clear();
  Py_ssize_t found = 0, places = 0;
  for (Py_ssize_t place = sizeof(PyObject); own && place + 8 <= end_; place += 8)
    if (word(object, place) == own.get()) found = place, ++places;
  if (places == 1) place_ = found;
  return own;
}

bool Sharded::learn(PyObject* dtensor, PyObject* tensor, PyObject* local) {
  if (dtensor == reinterpret_cast<PyObject*>(dtensor_)) return true;
  if (!PyType_Check(dtensor) || !PyType_Check(tensor)) return false;
  Member own, spec;
  const bool found = own.learn(dtensor, "_local_tensor") && spec.learn(dtensor, "_spec");
  PyErr_Clear();
  if (!found) return false;
  for (PyObject* kept : {dtensor, tensor, local}) Py_INCREF(kept);
  dtensor_ = reinterpret_cast<PyTypeObject*>(dtensor);
  tensor_ = reinterpret_cast<PyTypeObject*>(tensor);
  wait_ = local, local_ = own, spec_ = spec;
  return true;
}

Owned Sharded::awaited(PyObject* dtensor) const {
  Owned found(PyObject_CallFunctionObjArgs(wait_, dtensor, nullptr));
  return found && PyObject_TypeCheck(found.get(), tensor_) ? std::move(found) : nullptr;
}

bool Sharded::alike(PyObject* spec, PyObject* other) {
  static PyObject* names[] = {PyUnicode_InternFromString("placements"),
                              PyUnicode_InternFromString("mesh")};
  for (PyObject* name : names) {
    const Owned own(PyObject_GetAttr(spec, name));
    const Owned its(own ? PyObject_GetAttr(other, name) : nullptr);
    if (!its || PyObject_RichCompareBool(own.get(), its.get(), Py_EQ) != 1) return false;
  }
  return true;
}

}  // namespace fusedstep
