// Compares parameters, gradients and states with what a watch recorded.
#include "watch_walk.h"

namespace fusedstep {
namespace {

// A step's data evicts the tensors' headers from the caches. Cache misses, one after another, would
// cost more than all other work here. So we prefetch headers a few places ahead.
constexpr size_t kTensorsAhead = 16, kDictsAhead = 4;
constexpr int64_t kEmpty = 16;  // EMPTY in plan/shards.py

}  // namespace

bool Watch::is_ready() { return memory.known(); }

bool Watch::get_ready(PyObject* source, PyObject* samples) {
  TensorMemory found;
  if (!found.learn(source, samples)) return false;
  memory = found;
  return true;
}

bool Watch::matches_in_full(Seen& seen, PyObject* object) {
  DlTensor t;
  if (!memory.describe(object, &t)) return false;
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

Owned Watch::local_of(Spread& seen, PyObject* dtensor) {
  if (Py_TYPE(dtensor) != seen.type) return nullptr;
  Owned spec = sharded.spec(dtensor);
  PyObject* before = seen.spec;
  if (!spec) return nullptr;
  if (spec.get() != before) {  // the next step may have the same again
    if (before == nullptr || !Sharded::alike(spec.get(), before)) return nullptr;
    seen.spec = spec.release();
    Py_DECREF(before);
  }
  return sharded.local(dtensor);
}

struct Watch::Comparer {
  Watch& watch;
  size_t fact = 0, tensors = 0, dicts = 0, spreads = 0;
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
  // What was recorded at this place, if it is a DTensor. `object` is null for a gradient.
  Spread* next_spread(PyObject* object) {
    if (spreads >= watch.spreads_.size() || watch.spreads_[spreads].object != object) return nullptr;
    if (spreads + kTensorsAhead < watch.spreads_.size()) {
      PyObject* ahead = watch.spreads_[spreads + kTensorsAhead].object;
      if (ahead != nullptr) memory.prefetch(ahead);
    }
    return &watch.spreads_[spreads++];
  }
  bool tensor(PyObject* object) {
    Seen* seen = next();
    if (seen == nullptr) return false;
    if (seen->object == object) return is_same(*seen, object);
    Spread* spread = next_spread(object);
    const Owned local = spread ? local_of(*spread, object) : nullptr;
    return local && seen->object == local.get() && is_same(*seen, local.get());
  }
  bool is_same(Seen& seen, PyObject* object) {
    const int64_t before = seen.address;
    // Another kind of object may have taken the address of a tensor that is gone.
    const bool is_tensor = seen.words >= 0 && number(Py_TYPE(object)) == watch.words_.at(seen.words)[0];
    return ((is_tensor && watch.matches(seen, memory.body(object))) ||
            watch.matches_in_full(seen, object)) &&
           seen.address == before;
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
    Owned object;
    Spread* spread = next_spread(nullptr);
    if (seen->holder != nullptr) {
      body = memory.gradient(memory.holder(memory.body(param)));
    } else {
      object = grad_of(param);
      if (object && spread && object.get() != Py_None) object = local_of(*spread, object.get());
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
    const int64_t before = address_of(*seen, spread);
    if (seen->words < 0 || !watch.matches(*seen, body)) {
      if (!object) object = grad_of(param);
      if (!object || !watch.matches_in_full(*seen, object.get())) return false;
    }
    const int64_t now = address_of(*seen, spread);
    if (now != before && (now == 0 || (now ^ before) & 15)) return false;
    if (!was_present)
      write(index, now);
    else if (now != before)
      moved += write(index, now);
    return true;
  }
  // The empty gradient of an empty part counts as present: kernels take 0 for absent.
  int64_t address_of(const Seen& seen, const Spread* spread) const {
    const bool is_empty = spread && seen.address == 0 && watch.is_empty(seen.layout);
    return is_empty ? kEmpty : seen.address;
  }
  bool write(size_t index, int64_t address) {
    const int64_t cell = index < watch.cells_.size() ? watch.cells_[index] : 0;
    if (cell) *reinterpret_cast<int64_t*>(cell) = address;
    return cell != 0;
  }
  bool all_seen() const {
    return fact == watch.facts_.size() && tensors == watch.seen_.size() &&
           spreads == watch.spreads_.size() && dicts == watch.dicts_.size();
  }
};

int64_t Watch::check(PyObject* param_lists, PyObject* state) {
  Comparer compare{*this};
  if (!over_ && walk(param_lists, state, compare) && compare.all_seen())
    return compare.moved + (compare.came_or_went ? kCameOrWent : 0);
  over_ = true;
  PyErr_Clear();  // an unreadable tensor has changed; the new plan will report the error
  return -1;
}

}  // namespace fusedstep
