// Walks parameters, gradients and states: records them the first time, compares them later.
#include "watch.h"

namespace fusedstep {
namespace {

TensorMemory memory;

int64_t number(const void* pointer) { return reinterpret_cast<int64_t>(pointer); }

// The gradient of a parameter, as a new reference. The attribute lookup takes as long as the read,
// so we look up the getter once per type.
PyObject* grad_of(PyObject* param) {
  static PyObject* name = PyUnicode_InternFromString("grad");
  static PyTypeObject* known = nullptr;
  static const PyGetSetDef* property = nullptr;
  PyTypeObject* type = Py_TYPE(param);
  if (type != known) {
    PyObject* found = PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name);
    if (found == nullptr) return nullptr;
    const bool direct =
        type->tp_getattro == PyObject_GenericGetAttr && Py_IS_TYPE(found, &PyGetSetDescr_Type);
    property = direct ? reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset : nullptr;
    Py_INCREF(type);  // keeps the property alive
    Py_XDECREF(known);
    known = type;
    Py_DECREF(found);
  }
  return property != nullptr ? property->get(param, property->closure) : PyObject_GetAttr(param, name);
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

const char* keys_of(PyObject* dict) {
  return reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(dict)->ma_keys);
}

// A step's data evicts the tensors' headers from the caches. Cache misses, one after another, would
// cost more than all other work here. So we prefetch headers a few places ahead.
constexpr size_t kTensorsAhead = 16, kDictsAhead = 4;

}  // namespace

bool Watch::is_ready() { return memory.known(); }

bool Watch::get_ready(PyObject* exchange_api, PyObject* samples) {
  const DlFromObject from_object = dl_from_object(exchange_api);
  TensorMemory found;
  if (from_object == nullptr || !found.learn(samples, from_object)) return false;
  memory = found;
  return true;
}

int32_t Rows::place(const std::vector<int64_t>& row) {
  const auto [found, is_new] = places_.try_emplace(row, int32_t(numbers_.size()));
  if (is_new) numbers_.insert(numbers_.end(), row.begin(), row.end());
  return found->second;
}

// Records where a tensor is. Its layout is already in `seen`.
void Watch::note(Seen& seen, PyObject* object, const DlTensor& t) {
  seen.object = object, seen.body = memory.body(object), seen.storage = nullptr;
  seen.data = t.address(), seen.words = -1;
  // If gradients keep moving within their storage, do not add a row for each place.
  const bool too_many = words_.count() > 2 * seen_.size();
  if (!memory.is_plain(seen.body, t) || t.data == nullptr || too_many) return;
  seen.storage = memory.storage(seen.body);
  seen.data = memory.data(seen.storage);
  std::vector<int64_t> row = {number(Py_TYPE(object)), t.address() - seen.data, t.ndim};
  const std::vector<int64_t> words = memory.words(seen.body, t.ndim);
  row.insert(row.end(), words.begin(), words.end());
  seen.words = words_.place(row);
}

bool Watch::record(PyObject* object) {
  DlTensor t;
  if (from_object_(object, &t) != 0) return false;
  std::vector<int64_t> layout;
  visit_layout(object, t, [&](int64_t value) { return layout.push_back(value), true; });
  seen_.push_back({});
  seen_.back().layout = layouts_.place(layout);
  note(seen_.back(), object, t);
  return true;
}

bool Watch::matches_in_full(Seen& seen, PyObject* object, int64_t& address) {
  DlTensor t;
  if (from_object_(object, &t) != 0) return false;
  const int64_t* at = layouts_.at(seen.layout);
  if (!visit_layout(object, t, [&](int64_t value) { return value == *at++; })) return false;
  note(seen, object, t);
  address = t.address();
  return true;
}

bool Watch::matches(Seen& seen, PyObject* object, int64_t& address) {
  if (seen.words < 0) return matches_in_full(seen, object, address);
  const int64_t* row = words_.at(seen.words);
  if (number(Py_TYPE(object)) != row[0]) return matches_in_full(seen, object, address);
  const char* body = memory.body(object);
  const char* storage = memory.storage(body);
  if (storage == nullptr || !memory.has_words(body, row[2], row + 3))
    return matches_in_full(seen, object, address);
  seen.object = object, seen.body = body, seen.storage = storage;
  seen.data = memory.data(storage);
  address = seen.data + row[1];
  return true;
}

// Records an absent gradient: its layout if known, on its parameter's device.
void Watch::record_absent(const Seen& param, const std::optional<Layout>& layout) {
  Seen seen{};
  seen.words = seen.layout = -1;
  if (layout) {
    const int64_t* own = layouts_.at(param.layout);
    const int64_t ndim = own[0] >> 16;
    std::vector<int64_t> row = {layout->code | layout->bits << 8 | ndim << 16, own[1],
                                memory.flags_of(layout->negated)};
    bool empty = false;
    for (int64_t d = 0; d < ndim; ++d) {
      row.insert(row.end(), {own[3 + 2 * d], layout->strides.at(d)});
      empty |= own[3 + 2 * d] == 0;
    }
    seen.layout = layouts_.place(row);
    seen.data = empty ? 0 : 16;  // aligned, as plans assume of absent gradients
  }
  seen_.push_back(seen);
}

struct Watch::Recorder {
  Watch& watch;
  const Layouts& earlier;

  bool operator()(int64_t value) { return watch.facts_.push_back(value), true; }
  bool dict(PyObject* object) {
    watch.dicts_.push_back({object, keys_of(object)});
    return (*this)(number(object));
  }
  bool tensor(PyObject* object) { return watch.record(object); }
  bool gradient(PyObject* object, size_t index) {
    watch.present_.push_back(object != Py_None);
    if (object != Py_None) return watch.record(object);
    const Seen param = watch.seen_.back();
    watch.record_absent(param, index < earlier.size() ? earlier[index] : std::nullopt);
    return true;
  }
};

struct Watch::Comparer {
  Watch& watch;
  size_t fact = 0, tensors = 0, dicts = 0;
  int64_t moved = 0;
  bool came_or_went = false;

  bool operator()(int64_t value) { return fact < watch.facts_.size() && watch.facts_[fact++] == value; }
  bool dict(PyObject* object) {
    if (dicts + kDictsAhead < watch.dicts_.size()) {
      const Dict& ahead = watch.dicts_[dicts + kDictsAhead];
      __builtin_prefetch(ahead.object);
      for (int offset : {0, 64, 128, 192}) __builtin_prefetch(ahead.keys + offset);
    }
    if (dicts < watch.dicts_.size()) watch.dicts_[dicts++].keys = keys_of(object);
    return (*this)(number(object));
  }
  // What was recorded at this place.
  Seen* next() {
    if (tensors >= watch.seen_.size()) return nullptr;
    if (tensors + kTensorsAhead < watch.seen_.size()) {
      const Seen& ahead = watch.seen_[tensors + kTensorsAhead];
      __builtin_prefetch(ahead.object);
      for (int offset : {16, 72, 136}) __builtin_prefetch(ahead.body + offset);
      __builtin_prefetch(ahead.storage + 16);
    }
    return &watch.seen_[tensors++];
  }
  bool tensor(PyObject* object) {
    Seen* seen = next();
    if (seen == nullptr || seen->object != object) return false;
    const int64_t before = watch.address_of(*seen);
    int64_t now;
    return watch.matches(*seen, object, now) && now == before;
  }
  // A gradient may move, or come back, if its alignment stays the same.
  bool gradient(PyObject* object, size_t index) {
    Seen* seen = next();
    if (seen == nullptr || index >= watch.present_.size()) return false;
    char& present = watch.present_[index];
    const bool was_present = present;
    present = object != Py_None;
    if (!present) {
      if (was_present) came_or_went = true, write(index, 0);
      return true;
    }
    const int64_t before = watch.address_of(*seen);
    int64_t now;
    if (seen->layout < 0 || !watch.matches(*seen, object, now)) return false;
    if (now != before && (now == 0 || (now ^ before) & 15)) return false;
    if (!was_present)
      came_or_went = true, write(index, now);
    else if (now != before)
      moved += write(index, now);
    return true;
  }
  bool write(size_t index, int64_t address) {
    const int64_t cell = index < watch.cells_.size() ? watch.cells_[index] : 0;
    if (cell) *reinterpret_cast<int64_t*>(cell) = address;
    return cell != 0;
  }
  bool all_seen() const { return fact == watch.facts_.size() && tensors == watch.seen_.size(); }
};

template <class Visit>
bool Watch::walk(PyObject* param_lists, PyObject* state, Visit& visit) {
  size_t index = 0;
  const Py_ssize_t groups = PyList_GET_SIZE(param_lists);
  if (!visit(groups)) return false;
  for (Py_ssize_t g = 0; g < groups; ++g) {
    PyObject* params = PyList_GET_ITEM(param_lists, g);
    if (!PyList_Check(params) || !visit(PyList_GET_SIZE(params))) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i, ++index) {
      PyObject* param = PyList_GET_ITEM(params, i);
      if (!visit.tensor(param)) return false;
      PyObject* grad = grad_of(param);
      if (grad == nullptr) return false;
      const bool same = visit.gradient(grad, index);
      Py_DECREF(grad);
      if (!same) return false;
    }
  }

  PyObject *key, *value;
  Py_ssize_t position = 0;
  if (!visit(PyDict_Size(state))) return false;
  while (PyDict_Next(state, &position, &key, &value)) {
    const bool own = PyDict_Check(value);  // otherwise the user put it there
    if (!visit(number(key)) || !(own ? visit.dict(value) : visit(0))) return false;
    if (!own) continue;
    if (!visit(PyDict_Size(value))) return false;
    for (PyObject* name : keys_) {
      PyObject* entry = PyDict_GetItemWithError(value, name);
      if (entry == nullptr && PyErr_Occurred()) return false;
      const bool is_tensor = entry != nullptr && !PyLong_Check(entry) && !PyFloat_Check(entry);
      if (!(is_tensor ? visit(-1) && visit.tensor(entry) : visit(number(entry)))) return false;
    }
  }
  return true;
}

Watch::Watch(PyObject* exchange_api, PyObject* param_lists, PyObject* state, PyObject* keys,
             std::vector<int64_t> cells, const Layouts& earlier)
    : from_object_(dl_from_object(exchange_api)), cells_(std::move(cells)) {
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(keys); ++k) {
    PyObject* name = PyTuple_GET_ITEM(keys, k);
    Py_INCREF(name);  // a few interned names, never freed
    keys_.push_back(name);
  }
  Recorder recorder{*this, earlier};
  if (!walk(param_lists, state, recorder) && !PyErr_Occurred())
    PyErr_SetString(PyExc_TypeError, "param groups hold something else than lists of tensors");
}

int64_t Watch::check(PyObject* param_lists, PyObject* state) {
  Comparer compare{*this};
  if (!over_ && walk(param_lists, state, compare) && compare.all_seen())
    return compare.moved + (compare.came_or_went ? kCameOrWent : 0);
  over_ = true;
  PyErr_Clear();  // an unreadable tensor has changed; the new plan will report the error
  return -1;
}

}  // namespace fusedstep
