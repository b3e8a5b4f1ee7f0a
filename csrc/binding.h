// Makes C++ functions and classes callable from Python. It keeps to the limited API of Python 3.10, so
// one build serves every later Python.
#pragma once

#include <Python.h>

#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "values.h"

namespace fusedstep {

// While it lives, other Python threads may run.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() { PyEval_RestoreThread(state_); }
  Unlocked(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

namespace binding {

// The result for Python, or null with a Python error in place of a C++ exception. An error that Python
// code under the call has left is kept.
template <class Call>
PyObject* guarded(Call&& call) {
  try {
    return call();
  } catch (const Raised&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::out_of_range& error) {
    PyErr_SetString(PyExc_IndexError, error.what());
  } catch (const std::exception& error) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <class... Args, size_t... k>
std::tuple<std::decay_t<Args>...> converted([[maybe_unused]] PyObject* const* given, Py_ssize_t count,
                                            std::index_sequence<k...>) {
  return std::tuple<std::decay_t<Args>...>{
      (Py_ssize_t(k) < count ? From<std::decay_t<Args>>::python(given[k]) : std::decay_t<Args>{})...};
}

// The arguments of a call. After the first `least` they may be left out: then they are 0.
template <class... Args>
std::tuple<std::decay_t<Args>...> arguments(PyObject* const* given, Py_ssize_t count, size_t least) {
  if (size_t(count) < least || size_t(count) > sizeof...(Args)) {
    PyErr_Format(PyExc_TypeError, "expected %zu to %zu arguments, got %zd", least, sizeof...(Args),
                 count);
    throw Raised();
  }
  return converted<Args...>(given, count, std::index_sequence_for<Args...>());
}

// A Python object that owns a T.
template <class T>
struct Object {
  PyObject_HEAD T* value;

  static T& of(PyObject* self) { return *reinterpret_cast<Object*>(self)->value; }
  static void free(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    delete reinterpret_cast<Object*>(self)->value;
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
  }
};

template <bool unlocked, class Call>
PyObject* result_of(Call&& call) {
  auto run = [&] {
    [[maybe_unused]] std::optional<Unlocked> others;
    if (unlocked) others.emplace();
    return call();
  };
  if constexpr (std::is_void_v<decltype(call())>) {
    run();
    Py_INCREF(Py_None);
    return Py_None;
  } else {
    return checked(to_python(run()));
  }
}

template <auto callee>
struct Callee;

template <class Result, class... Args, Result (*function)(Args...)>
struct Callee<function> {
  template <bool unlocked>
  static PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t count) {
    return guarded([&] {
      auto args = arguments<Args...>(given, count, sizeof...(Args));
      return result_of<unlocked>([&] { return std::apply(function, std::move(args)); });
    });
  }
};

template <class T, class Result, class... Args>
struct Method {
  template <bool unlocked, class Function>
  static PyObject* call(Function method, PyObject* self, PyObject* const* given, Py_ssize_t count) {
    return guarded([&] {
      auto args = arguments<Args...>(given, count, sizeof...(Args));
      T& own = Object<T>::of(self);
      return result_of<unlocked>([&] {
        return std::apply([&](auto&... arg) -> Result { return (own.*method)(arg...); }, args);
      });
    });
  }
};
template <class T, class Result, class... Args, Result (T::*method)(Args...)>
struct Callee<method> {
  template <bool unlocked>
  static PyObject* call(PyObject* self, PyObject* const* given, Py_ssize_t count) {
    return Method<T, Result, Args...>::template call<unlocked>(method, self, given, count);
  }
};
template <class T, class Result, class... Args, Result (T::*method)(Args...) const>
struct Callee<method> {
  template <bool unlocked>
  static PyObject* call(PyObject* self, PyObject* const* given, Py_ssize_t count) {
    return Method<T, Result, Args...>::template call<unlocked>(method, self, given, count);
  }
};

template <auto make, size_t least>
struct Maker;
template <class T, class... Args, std::unique_ptr<T> (*make)(Args...), size_t least>
struct Maker<make, least> {
  using Made = T;
  static PyObject* create(PyTypeObject* type, PyObject* args, PyObject* names) {
    return guarded([&] {
      if (names != nullptr && PyDict_Size(names) > 0) refuse("no names of arguments", names);
      std::vector<PyObject*> given;
      for (Py_ssize_t k = 0; k < PyTuple_Size(args); ++k) given.push_back(PyTuple_GetItem(args, k));
      auto numbers = arguments<Args...>(given.data(), Py_ssize_t(given.size()), least);
      std::unique_ptr<T> value = std::apply(make, std::move(numbers));
      PyObject* self = checked(reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc))(type, 0));
      reinterpret_cast<Object<T>*>(self)->value = value.release();
      return self;
    });
  }
};

template <auto callee, bool unlocked>
PyMethodDef method(const char* name) {
  const auto call = &Callee<callee>::template call<unlocked>;
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL,
          nullptr};
}

}  // namespace binding

// A row of a table of methods: a function, or a method of a class. It ends with PyMethodDef{}.
template <auto callee>
PyMethodDef def(const char* name) {
  return binding::method<callee, false>(name);
}
// Other Python threads run meanwhile.
template <auto callee>
PyMethodDef def_unlocked(const char* name) {
  return binding::method<callee, true>(name);
}

template <class T, class... Args>
std::unique_ptr<T> make(Args... args) {
  return std::make_unique<T>(std::move(args)...);
}

// Adds a class whose constructor is `factory`, a function that returns a std::unique_ptr. `name` has
// the module's. `methods` must live as long as the module.
template <auto factory, size_t least>
void add_class(PyObject* module, const char* name, PyMethodDef* methods) {
  using Maker = binding::Maker<factory, least>;
  using Object = binding::Object<typename Maker::Made>;
  PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(&Maker::create)},
                         {Py_tp_dealloc, reinterpret_cast<void*>(&Object::free)},
                         {Py_tp_methods, methods},
                         {0, nullptr}};
  PyType_Spec spec = {name, sizeof(Object), 0, Py_TPFLAGS_DEFAULT, slots};
  const Owned type(binding::checked(PyType_FromSpec(&spec)));
  const std::string full = name;
  const std::string own = full.substr(full.rfind('.') + 1);
  if (PyObject_SetAttrString(module, own.c_str(), type.get()) != 0) throw Raised();
}

template <class T>
void add_constant(PyObject* module, const char* name, const T& value) {
  const Owned object(binding::checked(binding::to_python(value)));
  if (PyObject_SetAttrString(module, name, object.get()) != 0) throw Raised();
}

// A module with the functions of a table. `fill` adds the rest.
template <class Fill>
PyObject* make_module(PyModuleDef& definition, Fill&& fill) {
  return binding::guarded([&] {
    Owned module(binding::checked(PyModule_Create(&definition)));
    fill(module.get());
    return module.release();
  });
}

}  // namespace fusedstep
