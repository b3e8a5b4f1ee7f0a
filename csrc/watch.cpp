// One walk over parameters, gradients and states: the first time it records, later it compares.
#include "watch.h"

namespace fusedstep {
namespace {

// The C interface of DLPack 1.3, as far as it is used.
struct DlTensor {
  void* data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DlExchangeApi {
  uint32_t major, minor;
  void* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, DlTensor* out);
};

int64_t number(const void* pointer) { return reinterpret_cast<int64_t>(pointer); }

PyObject* grad_name() {
  static PyObject* name = PyUnicode_InternFromString("grad");
  return name;
}

// The method of a type of tensors, found once: looking for it at each gradient takes as long as the
// call does.
PyObject* is_neg_of(PyTypeObject* type) {
  static PyTypeObject* known = nullptr;
  static PyObject* method = nullptr;
  if (type != known) {
    PyObject* found = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "is_neg");
    if (found == nullptr) return nullptr;
    Py_INCREF(type);
    Py_XDECREF(known);
    Py_XDECREF(method);
    known = type;
    method = found;
  }
  return method;
}

struct Recorder {
  std::vector<int64_t>& seen;
  bool operator()(int64_t value) {
    seen.push_back(value);
    return true;
  }
  bool address(int64_t value, int64_t) { return (*this)(value); }
};

struct Comparer {
  const int64_t* at;
  const int64_t* end;
  int64_t moved = 0;
  bool operator()(int64_t value) { return at != end && *at++ == value; }
  // A gradient may move, as long as there is one and it stays as aligned as it was.
  bool address(int64_t value, int64_t cell) {
    if (at == end) return false;
    int64_t& seen = const_cast<int64_t&>(*at++);
    if (seen == value) return true;
    if (value == 0 || (seen ^ value) & 15) return false;
    seen = value;
    if (cell) *reinterpret_cast<int64_t*>(cell) = value, ++moved;
    return true;
  }
};

// A step's data pushes the tensors' own headers out of the caches, and waiting for one after the other
// costs more than all the rest. So the lines of the object some places ahead are asked for early.
constexpr size_t kAhead = 16;

void fetch(const Watch::Place& place) {
  __builtin_prefetch(place.object);
  for (int offset : {-80, -16, 48, 112, 176}) __builtin_prefetch(place.inside + offset);
}

// Everything about a tensor but its address.
template <class Visit>
bool visit_layout(const DlTensor& t, Visit& visit) {
  const int64_t kind = int64_t(t.code) | int64_t(t.bits) << 8 | int64_t(t.ndim) << 16;
  if (!visit(kind) || !visit(int64_t(t.device_type) << 32 | t.device_id)) return false;
  for (int32_t d = 0; d < t.ndim; ++d)
    if (!visit(t.shape[d]) || (t.strides && !visit(t.strides[d]))) return false;
  return true;
}

}  // namespace

bool Watch::usable(PyObject* exchange_api) {
  const void* api = PyCapsule_GetPointer(exchange_api, "dlpack_exchange_api");
  PyErr_Clear();
  const auto* table = static_cast<const DlExchangeApi*>(api);
  return table != nullptr && table->major == 1 && table->tensor_from_object != nullptr;
}

template <class Visit>
bool Watch::walk(PyObject* param_lists, PyObject* state, Visit&& visit) {
  const auto tensor_from_object = static_cast<const DlExchangeApi*>(api_)->tensor_from_object;
  DlTensor t;
  size_t place = 0;  // counts the objects looked at
  auto remember = [&](void* object, void* inside) {
    if (place >= places_.size()) places_.resize(place + 1);
    places_[place].object = static_cast<char*>(object);
    places_[place++].inside = static_cast<char*>(inside);
    if (place + kAhead < places_.size()) fetch(places_[place + kAhead]);
  };
  auto look = [&](PyObject* object) {
    if (tensor_from_object(object, &t) != 0) return false;
    remember(object, t.shape);
    return true;
  };
  // Whether a gradient's numbers are to be read with the other sign, which DLPack does not say. It is
  // asked every time: a new gradient may be an object at the address of one that is gone.
  auto negated = [](PyObject* grad) -> int64_t {
    PyObject* method = is_neg_of(Py_TYPE(grad));
    PyObject* answer = method ? PyObject_Vectorcall(method, &grad, 1, nullptr) : nullptr;
    if (answer == nullptr) return -1;
    Py_DECREF(answer);
    return answer == Py_True;
  };
  auto tensor = [&](PyObject* object) {
    return visit(number(object)) && look(object) && visit(number(t.data) + int64_t(t.byte_offset)) &&
           visit_layout(t, visit);
  };

  size_t index = 0;
  const Py_ssize_t groups = PyList_GET_SIZE(param_lists);
  if (!visit(groups)) return false;
  for (Py_ssize_t g = 0; g < groups; ++g) {
    PyObject* params = PyList_GET_ITEM(param_lists, g);
    if (!PyList_Check(params) || !visit(PyList_GET_SIZE(params))) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i, ++index) {
      PyObject* param = PyList_GET_ITEM(params, i);
      if (!tensor(param)) return false;
      PyObject* grad = PyObject_GetAttr(param, grad_name());
      if (grad == nullptr) return false;
      const int64_t cell = index < cells_.size() ? cells_[index] : 0;
      bool same = visit(grad != Py_None);
      if (same && grad != Py_None) {
        same = visit(negated(grad)) && look(grad) &&
               visit.address(number(t.data) + int64_t(t.byte_offset), cell) && visit_layout(t, visit);
      }
      Py_DECREF(grad);
      if (!same) return false;
    }
  }

  PyObject *key, *value;
  Py_ssize_t position = 0;
  if (!visit(PyDict_Size(state))) return false;
  while (PyDict_Next(state, &position, &key, &value)) {
    const bool own = PyDict_Check(value);  // else it is something of the user's
    if (!visit(number(key)) || !visit(own ? number(value) : 0)) return false;
    if (!own) continue;
    remember(value, reinterpret_cast<PyDictObject*>(value)->ma_keys);
    if (!visit(PyDict_Size(value))) return false;
    for (PyObject* name : keys_) {
      PyObject* entry = PyDict_GetItemWithError(value, name);
      if (!visit(number(entry))) return false;
      if (entry == nullptr) {
        if (PyErr_Occurred()) return false;
        continue;
      }
      if (PyLong_Check(entry) || PyFloat_Check(entry)) continue;
      if (!look(entry) || !visit(number(t.data) + int64_t(t.byte_offset)) || !visit_layout(t, visit))
        return false;
    }
  }
  return true;
}

Watch::Watch(PyObject* exchange_api, PyObject* param_lists, PyObject* state, PyObject* keys,
             std::vector<int64_t> cells)
    : api_(PyCapsule_GetPointer(exchange_api, "dlpack_exchange_api")), cells_(std::move(cells)) {
  if (api_ == nullptr) return;
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(keys); ++k) {
    PyObject* name = PyTuple_GET_ITEM(keys, k);
    Py_INCREF(name);  // a handful of interned names, which live as long as the program
    keys_.push_back(name);
  }
  if (!walk(param_lists, state, Recorder{seen_}) && !PyErr_Occurred())
    PyErr_SetString(PyExc_TypeError, "param groups hold something else than lists of tensors");
}

int64_t Watch::check(PyObject* param_lists, PyObject* state) {
  Comparer compare{seen_.data(), seen_.data() + seen_.size()};
  if (walk(param_lists, state, compare) && compare.at == compare.end) return compare.moved;
  PyErr_Clear();  // what cannot be looked at has changed; making the plan anew says what is wrong
  return -1;
}

}  // namespace fusedstep
