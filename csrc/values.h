// Makes C++ values of Python objects, and the other way round. It keeps to the limited API of
// Python 3.10.
#pragma once

#include <Python.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "owned.h"

namespace fusedstep {

// Thrown where a Python error is already set.
struct Raised {};

// Arguments that are Python objects.
struct List {
  PyObject* object;
};
struct Dict {
  PyObject* object;
};

namespace binding {

inline PyObject* checked(PyObject* object) {
  if (object == nullptr) throw Raised();
  return object;
}

[[noreturn]] inline void refuse(const char* expected, PyObject* found) {
  PyErr_Format(PyExc_TypeError, "expected %s, got %R", expected, found);
  throw Raised();
}

// From<T>::python makes a T of a Python object.
template <class T>
struct From {
  static_assert(std::is_integral_v<T>);
  static T python(PyObject* object) {
    const long long number = PyLong_AsLongLong(object);
    if (number == -1 && PyErr_Occurred()) throw Raised();
    if (number < std::numeric_limits<T>::min() || number > std::numeric_limits<T>::max())
      refuse("a smaller number", object);
    return T(number);
  }
};
template <>
struct From<bool> {
  static bool python(PyObject* object) {
    const int truth = PyObject_IsTrue(object);
    if (truth < 0) throw Raised();
    return truth != 0;
  }
};
template <>
struct From<double> {
  static double python(PyObject* object) {
    const double number = PyFloat_AsDouble(object);
    if (number == -1.0 && PyErr_Occurred()) throw Raised();
    return number;
  }
};
template <>
struct From<std::string> {
  static std::string python(PyObject* object) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &size);
    if (text == nullptr) throw Raised();
    return std::string(text, size);
  }
};
template <>
struct From<PyObject*> {
  static PyObject* python(PyObject* object) { return object; }
};
template <>
struct From<List> {
  static List python(PyObject* object) {
    if (!PyList_Check(object)) refuse("a list", object);
    return {object};
  }
};
template <>
struct From<Dict> {
  static Dict python(PyObject* object) {
    if (!PyDict_Check(object)) refuse("a dict", object);
    return {object};
  }
};
template <class T>
struct From<std::optional<T>> {
  static std::optional<T> python(PyObject* object) {
    if (object == Py_None) return std::nullopt;
    return From<T>::python(object);
  }
};
template <class T>
struct From<std::vector<T>> {
  static std::vector<T> python(PyObject* object) {
    const Owned items(checked(PySequence_Tuple(object)));
    std::vector<T> out;
    for (Py_ssize_t k = 0; k < PyTuple_Size(items.get()); ++k)
      out.push_back(From<T>::python(PyTuple_GetItem(items.get(), k)));
    return out;
  }
};
template <class... T>
struct From<std::tuple<T...>> {
  static std::tuple<T...> python(PyObject* object) {
    if (!PyTuple_Check(object) || PyTuple_Size(object) != sizeof...(T)) refuse("another tuple", object);
    return items(object, std::index_sequence_for<T...>());
  }
  template <size_t... k>
  static std::tuple<T...> items(PyObject* object, std::index_sequence<k...>) {
    return std::tuple<T...>{From<T>::python(PyTuple_GetItem(object, k))...};
  }
};

inline PyObject* to_python(bool x) { return PyBool_FromLong(x); }
inline PyObject* to_python(int x) { return PyLong_FromLong(x); }
inline PyObject* to_python(int64_t x) { return PyLong_FromLongLong(x); }
inline PyObject* to_python(const char* x) { return PyUnicode_FromString(x); }
inline PyObject* to_python(const std::string& x) {
  return PyUnicode_FromStringAndSize(x.data(), Py_ssize_t(x.size()));
}
inline PyObject* to_python(const std::vector<uint8_t>& x) {
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(x.data()), Py_ssize_t(x.size()));
}
inline PyObject* to_python(const std::vector<std::string>& x) {
  Owned list(checked(PyList_New(0)));
  for (const std::string& item : x)
    if (PyList_Append(list.get(), Owned(checked(to_python(item))).get()) != 0) throw Raised();
  return list.release();
}

}  // namespace binding
}  // namespace fusedstep
