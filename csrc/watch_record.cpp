// Records parameters, gradients and states for a watch.
#include "watch_walk.h"

namespace fusedstep {

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
  if (!memory.describe(object, &t)) return false;
  std::vector<int64_t> layout;
  visit_layout(object, t, [&](int64_t value) { return layout.push_back(value), true; });
  seen_.push_back({});
  seen_.back().object = object;
  seen_.back().layout = layouts_.place(layout);
  note(seen_.back(), object, t);
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

Owned Watch::record_spread(PyObject* dtensor, bool is_gradient) {
  PyObject* spec = sharded.spec(dtensor).release();
  spreads_.push_back({is_gradient ? nullptr : dtensor, Py_TYPE(dtensor), spec});
  return sharded.local(dtensor);
}

bool Watch::is_empty(int32_t layout) const {
  const int64_t* row = layouts_.at(layout);
  bool empty = false;
  for (int64_t d = 0; d < row[0] >> 16; ++d) empty |= row[3 + 2 * d] == 0;
  return empty;
}

// Records an absent gradient: its layout if known, on its parameter's device.
void Watch::record_absent(const Seen& param, const std::optional<Layout>& layout, bool in_dtensor) {
  Seen seen{};
  seen.words = seen.layout = -1;
  if (layout) {
    const int64_t* own = layouts_.at(param.layout);
    const int64_t ndim = own[0] >> 16;
    const auto& [code, bits, negated, strides] = *layout;
    std::vector<int64_t> row = {code | bits << 8 | ndim << 16, own[1], memory.flags_of(negated)};
    for (int64_t d = 0; d < ndim; ++d) row.insert(row.end(), {own[3 + 2 * d], strides.at(d)});
    seen.layout = layouts_.place(row);
    // Aligned, as plans assume of absent gradients.
    seen.address = in_dtensor || !is_empty(seen.layout) ? 16 : 0;
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
  bool tensor(PyObject* object) {
    if (!sharded.holds(object)) return watch.record(object);
    const Owned local = watch.record_spread(object, false);
    return local && watch.record(local.get());
  }
  bool entry(PyObject* object) {
    if (PyLong_Check(object) || PyFloat_Check(object)) return (*this)(number(object));
    return (*this)(kTensor) && tensor(object);
  }
  bool gradient(PyObject* param, size_t index) {
    Owned object = grad_of(param);
    if (!object) return false;
    const bool present = object.get() != Py_None, in_dtensor = sharded.holds(param);
    watch.present_.push_back(present);
    const Seen own = watch.seen_.back();
    // An absent one is expected to come back spread as its parameter.
    if (in_dtensor && !(present && sharded.holds(object.get())))
      watch.record_spread(param, true), watch.spreads_.back().type = present ? nullptr : Py_TYPE(param);
    else if (in_dtensor)
      object = watch.record_spread(object.get(), true);
    if (!present)
      watch.record_absent(own, index < earlier.size() ? earlier[index] : std::nullopt, in_dtensor);
    else if (!object || !watch.record(object.get()))
      return false;
    // Read in place only what the getter returns too.
    const char* holder = memory.has_plain_gradient(param) ? memory.holder(own.body) : nullptr;
    const bool same = memory.gradient(holder) == (present ? memory.body(object.get()) : nullptr);
    watch.seen_.back().object = nullptr;
    watch.seen_.back().holder = same ? holder : nullptr;
    return true;
  }
};

Watch::Watch(PyObject* param_lists, PyObject* state, PyObject* keys, std::vector<int64_t> cells,
             const Layouts& earlier)
    : keys_(keys), cells_(std::move(cells)) {
  Py_INCREF(keys_);
  Recorder recorder{*this, earlier};
  if (!walk(param_lists, state, recorder) && !PyErr_Occurred())
    PyErr_SetString(PyExc_TypeError, "param groups hold something else than lists of tensors");
}

Watch::~Watch() {
  for (PyObject* name : names_) Py_DECREF(name);
  for (const Spread& seen : spreads_) Py_XDECREF(seen.spec);
  Py_DECREF(keys_);
}

}  // namespace fusedstep
