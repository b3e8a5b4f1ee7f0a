// Walks parameters, gradients and states: records them the first time, compares them later.
#include "watch.h"

#include <memory>

namespace fusedstep {
namespace {

int64_t number(const void* pointer) { return reinterpret_cast<int64_t>(pointer); }

struct Decref {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Decref>;

// The gradient of a parameter, as torch's getter returns it. The attribute lookup takes as long as the
// read, so we look up the getter once per type.
Owned grad_of(PyObject* param) {
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
  return Owned(property != nullptr ? property->get(param, property->closure)
                                   : PyObject_GetAttr(param, name));
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

const char* table_of(PyObject* dict) {
  return reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(dict)->ma_keys);
}

// Among the facts, in place of an entry's address.
constexpr int64_t kTensor = -1;

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
  seen.body = memory.body(object), seen.storage = nullptr;
  seen.address = t.address(), seen.words = -1;
  if (!memory.is_plain(seen.body, t) || t.data == nullptr) return;
  seen.storage = memory.storage(seen.body);
  std::vector<int64_t> row = {number(Py_TYPE(object)), t.bits / 8};
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
  seen_.back().object = object;
  seen_.back().layout = layouts_.place(layout);
  note(seen_.back(), object, t);
  return true;
}

bool Watch::matches_in_full(Seen& seen, PyObject* object) {
  DlTensor t;
  if (from_object_(object, &t) != 0) return false;
  const int64_t* at = layouts_.at(seen.layout);
  if (!visit_layout(object, t, [&](int64_t value) { return value == *at++; })) return false;
  note(seen, object, t);
  return true;
}

inline bool Watch::matches(Seen& seen, const char* body) {
  const int64_t* row = words_.at(seen.words);
  const char* storage = memory.storage(body);
  if (storage == nullptr || !memory.has_words(body, storage, row + 2)) return false;
  const int64_t address = memory.data(storage) + memory.offset(body) * row[1];
  // Most have not moved. Then nothing is written, so that the cache has nothing to write back.
  if (body != seen.body || storage != seen.storage || address != seen.address)
    seen.body = body, seen.storage = storage, seen.address = address;
  return true;
}

// The keys of a dict, in order.
int32_t Watch::keys_in(PyObject* dict) {
  std::vector<int64_t> row = {PyDict_Size(dict)};
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(dict, &position, &key, &value);) {
    const int is_ours = PySequence_Contains(keys_, key);
    row.insert(row.end(), {number(key), is_ours == 1});
  }
  const size_t known = dict_keys_.count();
  const int32_t place = dict_keys_.place(row);
  if (dict_keys_.count() > known) {
    for (Py_ssize_t position = 0; PyDict_Next(dict, &position, &key, &value);) {
      Py_INCREF(key);
      names_.push_back(key);
    }
  }
  return place;
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
    seen.address = empty ? 0 : 16;  // aligned, as plans assume of absent gradients
  }
  seen_.push_back(seen);
}

struct Watch::Recorder {
  Watch& watch;
  const Layouts& earlier;

  bool operator()(int64_t value) { return watch.facts_.push_back(value), true; }
  const int64_t* dict(PyObject* object) {
    watch.dicts_.push_back({object, table_of(object), watch.keys_in(object)});
    return watch.dict_keys_.at(watch.dicts_.back().keys);
  }
  bool tensor(PyObject* object) { return watch.record(object); }
  bool entry(PyObject* object) {
    if (PyLong_Check(object) || PyFloat_Check(object)) return (*this)(number(object));
    return (*this)(kTensor) && tensor(object);
  }
  bool gradient(PyObject* param, size_t index) {
    const Owned object = grad_of(param);
    if (!object) return false;
    const bool present = object.get() != Py_None;
    watch.present_.push_back(present);
    const Seen own = watch.seen_.back();
    if (!present)
      watch.record_absent(own, index < earlier.size() ? earlier[index] : std::nullopt);
    else if (!watch.record(object.get()))
      return false;
    // Read in place only what the getter returns too.
    const char* holder = memory.has_plain_gradient(param) ? memory.holder(own.body) : nullptr;
    const bool same = memory.gradient(holder) == (present ? memory.body(object.get()) : nullptr);
    watch.seen_.back().object = nullptr;
    watch.seen_.back().holder = same ? holder : nullptr;
    return true;
  }
};

struct Watch::Comparer {
  Watch& watch;
  size_t fact = 0, tensors = 0, dicts = 0;
  int64_t moved = 0;
  bool came_or_went = false;

  bool operator()(int64_t value) { return fact < watch.facts_.size() && watch.facts_[fact++] == value; }
  const int64_t* dict(PyObject* object) {
    if (dicts + kDictsAhead < watch.dicts_.size()) {
      const Dict& ahead = watch.dicts_[dicts + kDictsAhead];
      for (int offset : {8, 40}) __builtin_prefetch(reinterpret_cast<char*>(ahead.object) + offset);
      for (int offset : {0, 64, 128}) __builtin_prefetch(ahead.table + offset);
    }
    if (dicts >= watch.dicts_.size()) return nullptr;
    Dict& seen = watch.dicts_[dicts++];
    if (seen.object != object) return nullptr;
    if (seen.table != table_of(object)) seen.table = table_of(object);
    return watch.dict_keys_.at(seen.keys);
  }
  // What was recorded at this place.
  Seen* next() {
    if (tensors >= watch.seen_.size()) return nullptr;
    if (tensors + kTensorsAhead < watch.seen_.size()) {
      const Seen& ahead = watch.seen_[tensors + kTensorsAhead];
      if (ahead.object != nullptr)
        memory.prefetch(ahead.object);
      else
        memory.prefetch_gradient(ahead.holder);
      memory.prefetch(ahead.body, ahead.storage);
    }
    return &watch.seen_[tensors++];
  }
  bool tensor(PyObject* object) {
    Seen* seen = next();
    if (seen == nullptr || seen->object != object) return false;
    const int64_t before = seen->address;
    // Another kind of object may have taken the address of a tensor that is gone.
    const bool is_tensor =
        seen->words >= 0 && number(Py_TYPE(object)) == watch.words_.at(seen->words)[0];
    return ((is_tensor && watch.matches(*seen, memory.body(object))) ||
            watch.matches_in_full(*seen, object)) &&
           seen->address == before;
  }
  bool entry(PyObject* object) {
    if (fact >= watch.facts_.size() || watch.facts_[fact] != kTensor) return (*this)(number(object));
    return ++fact, tensor(object);
  }
  // A gradient may move, or come back, if its alignment stays the same.
  bool gradient(PyObject* param, size_t index) {
    Seen* seen = next();
    if (seen == nullptr || index >= watch.present_.size()) return false;
    const char* body;
    if (seen->holder != nullptr) {
      body = memory.gradient(memory.holder(memory.body(param)));
    } else {
      const Owned object = grad_of(param);
      if (!object) return false;
      body = object.get() == Py_None ? nullptr : memory.body(object.get());
    }
    const bool is_present = body != nullptr, was_present = watch.present_[index];
    if (is_present != was_present) watch.present_[index] = is_present, came_or_went = true;
    if (!is_present) {
      if (was_present) write(index, 0);
      return true;
    }
    if (seen->layout < 0) return false;
    const int64_t before = seen->address;
    if (seen->words < 0 || !watch.matches(*seen, body)) {
      const Owned object = grad_of(param);
      if (!object || !watch.matches_in_full(*seen, object.get())) return false;
    }
    const int64_t now = seen->address;
    if (now != before && (now == 0 || (now ^ before) & 15)) return false;
    if (!was_present)
      write(index, now);
    else if (now != before)
      moved += write(index, now);
    return true;
  }
  bool write(size_t index, int64_t address) {
    const int64_t cell = index < watch.cells_.size() ? watch.cells_[index] : 0;
    if (cell) *reinterpret_cast<int64_t*>(cell) = address;
    return cell != 0;
  }
  bool all_seen() const {
    return fact == watch.facts_.size() && tensors == watch.seen_.size() && dicts == watch.dicts_.size();
  }
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

Watch::Watch(PyObject* exchange_api, PyObject* param_lists, PyObject* state, PyObject* keys,
             std::vector<int64_t> cells, const Layouts& earlier)
    : from_object_(dl_from_object(exchange_api)), keys_(keys), cells_(std::move(cells)) {
  Py_INCREF(keys_);
  Recorder recorder{*this, earlier};
  if (!walk(param_lists, state, recorder) && !PyErr_Occurred())
    PyErr_SetString(PyExc_TypeError, "param groups hold something else than lists of tensors");
}

Watch::~Watch() {
  for (PyObject* name : names_) Py_DECREF(name);
  Py_DECREF(keys_);
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
