// What recording and comparing share: the order in which a watch goes over everything, and how it
// looks at single objects.
#pragma once

#include "watch.h"

namespace fusedstep {
namespace {

inline int64_t number(const void* pointer) { return reinterpret_cast<int64_t>(pointer); }

// The gradient of a parameter, as torch's getter returns it. The attribute lookup takes as long as the
// read, so we look up the getter once per type.
inline Owned grad_of(PyObject* param) {
  static PyObject* name = PyUnicode_InternFromString("grad");
  static PyTypeObject* known = nullptr;
  static PyObject* property = nullptr;  // kept alive by the type
  static descrgetfunc get = nullptr;
  PyTypeObject* type = Py_TYPE(param);
  if (type != known) {
    PyObject* found = PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name);
    if (found == nullptr) return nullptr;
    const bool direct =
        PyType_GetSlot(type, Py_tp_getattro) == reinterpret_cast<void*>(&PyObject_GenericGetAttr) &&
        Py_IS_TYPE(found, &PyGetSetDescr_Type);
    property = found;
    get = direct ? reinterpret_cast<descrgetfunc>(PyType_GetSlot(Py_TYPE(found), Py_tp_descr_get))
                 : nullptr;
    Py_INCREF(type);
    Py_XDECREF(known);
    known = type;
    Py_DECREF(found);
  }
  return Owned(get != nullptr ? get(property, param, nullptr) : PyObject_GetAttr(param, name));
}

// Everything about a tensor except its address.
template <class Visit>
bool visit_layout(PyObject* object, const DlTensor& t, Visit&& visit) {
  const int64_t kind = int64_t(t.code) | int64_t(t.bits) << 8 | int64_t(t.ndim) << 16;
  if (!visit(kind) || !visit(int64_t(t.device_type) << 32 | t.device_id)) return false;
  if (!visit(memory.flags(memory.body(object)))) return false;
  for (int32_t d = 0; d < t.ndim; ++d)
    if (!visit(t.shape[d]) || (t.strides && !visit(t.strides[d]))) return false;
  return true;
}

// Where a dict keeps its keys and values: a word of every Python so far. It is only prefetched, so no
// harm is done if a later one keeps it elsewhere.
inline const char* table_of(PyObject* dict) {
  constexpr int64_t kTable = sizeof(PyObject) + 16;
  return *reinterpret_cast<const char**>(reinterpret_cast<char*>(dict) + kTable);
}

// Among the facts, in place of an entry's address.
constexpr int64_t kTensor = -1;

}  // namespace

template <class Visit>
bool Watch::walk(PyObject* param_lists, PyObject* state, Visit& visit) {
  size_t index = 0;
  const Py_ssize_t groups = PyList_Size(param_lists);
  if (!visit(groups)) return false;
  for (Py_ssize_t g = 0; g < groups; ++g) {
    PyObject* params = PyList_GetItem(param_lists, g);
    if (!PyList_Check(params) || !visit(PyList_Size(params))) return false;
    for (Py_ssize_t i = 0; i < PyList_Size(params); ++i, ++index) {
      PyObject* param = PyList_GetItem(params, i);
      if (!visit.tensor(param) || !visit.gradient(param, index)) return false;
    }
  }

  PyObject *key, *value;
  Py_ssize_t position = 0;
  if (!visit(PyDict_Size(state))) return false;
  while (PyDict_Next(state, &position, &key, &value)) {
    if (!visit(number(key))) return false;
    if (!PyDict_Check(value)) {  // the user put it there
      if (!visit(0)) return false;
      continue;
    }
    const int64_t* keys = visit.dict(value);
    if (keys == nullptr || PyDict_Size(value) != *keys) return false;
    PyObject *name, *entry;
    Py_ssize_t place = 0;
    for (int64_t k = 0; k < keys[0]; ++k) {
      if (!PyDict_Next(value, &place, &name, &entry) || number(name) != keys[1 + 2 * k]) return false;
      if (keys[2 + 2 * k] && !visit.entry(entry)) return false;
    }
  }
  return true;
}

}  // namespace fusedstep
