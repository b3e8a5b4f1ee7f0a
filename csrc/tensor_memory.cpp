// Finds where tensors keep what a watch reads, on samples, and checks it on every pair of them.
#include "tensor_memory.h"

#include <algorithm>

#include "owned.h"

namespace fusedstep {
namespace {

struct DlExchangeApi {
  uint32_t major, minor;
  void* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  DlFromObject tensor_from_object;
};

int64_t number_at(PyObject* tuple, Py_ssize_t place) {
  return int64_t(PyLong_AsUnsignedLongLongMask(PyTuple_GetItem(tuple, place)));
}

std::vector<int64_t> numbers(PyObject* tuple) {
  std::vector<int64_t> found;
  for (Py_ssize_t k = 0; k < PyTuple_Size(tuple); ++k) found.push_back(number_at(tuple, k));
  return found;
}

// Null if `source` is no capsule of DLPack, or of an unknown version.
DlFromObject dl_from_object(PyObject* source) {
  const void* api = PyCapsule_GetPointer(source, "dlpack_exchange_api");
  PyErr_Clear();
  const auto* table = static_cast<const DlExchangeApi*>(api);
  return table != nullptr && table->major == 1 ? table->tensor_from_object : nullptr;
}

bool is_one_bit(int64_t mask) { return mask != 0 && (mask & (mask - 1)) == 0; }

}  // namespace

TensorMemory memory;

struct TensorMemory::Sample {
  PyObject* tensor;
  const char* body;
  int64_t storage, data;
  bool negated, conjugated, lazy;
  std::vector<int64_t> sizes, strides;
  int64_t ndim, facts;

  explicit Sample(PyObject* tuple) : tensor(PyTuple_GetItem(tuple, 0)) {
    auto number = [&](Py_ssize_t k) { return number_at(tuple, k); };
    body = reinterpret_cast<const char*>(number(1));
    storage = number(2), data = number(3);
    negated = number(4), conjugated = number(5), lazy = number(6);
    sizes = numbers(PyTuple_GetItem(tuple, 7)), strides = numbers(PyTuple_GetItem(tuple, 8));
    ndim = int64_t(sizes.size()), facts = number(9);
  }
};

namespace {

// The first offset before `end` that is right for every sample, or -1.
template <class Samples, class Right>
int64_t find_place(const Samples& samples, int64_t begin, int64_t end, Right&& right) {
  for (int64_t place = begin; place < end; place += 8) {
    bool all = true;
    for (const auto& sample : samples) all = all && right(sample, place);
    if (all) return place;
  }
  return -1;
}

}  // namespace

bool TensorMemory::learn(PyObject* source, PyObject* list) {
  from_object_ = dl_from_object(source), asked_ = nullptr;
  if (from_object_ == nullptr && !PyCallable_Check(source)) return known_ = false;
  if (from_object_ == nullptr) Py_INCREF(source), asked_ = source;
  Samples samples;
  for (Py_ssize_t k = 0; k < PyList_Size(list); ++k) samples.emplace_back(PyList_GetItem(list, k));
  known_ = !samples.empty() && find_storage(samples) && find_sizes(samples) && find_flags(samples) &&
           tells_apart(samples);
  PyErr_Clear();
  if (!known_ || !find_gradients(samples)) grad_ = 0;
  PyErr_Clear();
  return known_;
}

bool TensorMemory::describe(PyObject* tensor, DlTensor* out) const {
  if (from_object_ != nullptr) return from_object_(tensor, out) == 0;
  const Owned said(PyObject_CallFunctionObjArgs(asked_, tensor, nullptr));
  if (!said) return false;
  if (said.get() == Py_None) {
    PyErr_SetString(PyExc_BufferError, "a tensor has no memory that can be watched");
    return false;
  }
  const std::vector<int64_t> own = numbers(said.get());
  if (own.size() != 5 || PyErr_Occurred()) return false;
  const int64_t ndim = at<int64_t>(body(tensor), sizes_ - 8);
  // More than kMaxDims are elsewhere, strides behind sizes.
  const char* sizes = body(tensor) + sizes_;
  const char* strides = sizes + 8 * kMaxDims;
  if (ndim > kMaxDims) sizes = at<const char*>(sizes, 0), strides = sizes + 8 * ndim;
  out->data = reinterpret_cast<void*>(own[0]), out->byte_offset = 0;
  out->device_type = int32_t(own[1]), out->device_id = int32_t(own[2]);
  out->code = uint8_t(own[3]), out->bits = uint8_t(own[4]), out->lanes = 1;
  out->ndim = int32_t(ndim);
  out->shape = reinterpret_cast<int64_t*>(const_cast<char*>(sizes));
  out->strides = reinterpret_cast<int64_t*>(const_cast<char*>(strides));
  return true;
}

// Must run first: DLPack asks a lazy copy for its address, which makes it a real copy.
bool TensorMemory::find_storage(const Samples& samples) {
  body_ = find_place(samples, sizeof(PyObject), sizeof(PyObject) + 24,
                     [](const Sample& x, int64_t k) { return at<const char*>(x.tensor, k) == x.body; });
  if (body_ < 0) return false;
  storage_ = find_place(samples, 8, 64,
                        [](const Sample& x, int64_t k) { return at<int64_t>(x.body, k) == x.storage; });
  if (storage_ < 0) return false;
  data_ = find_place(samples, 8, 64, [&](const Sample& x, int64_t k) {
    return at<int64_t>(storage(x.body), k) == x.data;
  });
  if (data_ < 0) return false;
  deleter_ = find_place(samples, data_ + 8, data_ + 24, [&](const Sample& x, int64_t k) {
    const bool usual = at<int64_t>(storage(x.body), k) == at<int64_t>(storage(samples[0].body), k);
    return x.data == 0 || usual != x.lazy;
  });
  return deleter_ > 0;
}

bool TensorMemory::find_sizes(const Samples& samples) {
  sizes_ = find_place(samples, storage_ + 16, 128, [](const Sample& x, int64_t k) {
    bool right = at<int64_t>(x.body, k - 8) == x.ndim;
    for (int64_t d = 0; right && x.ndim <= kMaxDims && d < x.ndim; ++d)
      right = at<int64_t>(x.body, k + 8 * d) == x.sizes[d] &&
              at<int64_t>(x.body, k + 8 * (kMaxDims + d)) == x.strides[d];
    return right;
  });
  strides_ = sizes_ + 8 * kMaxDims;
  return sizes_ > 0;
}

// Finds the word with one bit for negated and one for conjugated tensors.
bool TensorMemory::find_flags(const Samples& samples) {
  for (flags_ = tail(); flags_ < tail() + 64; flags_ += 8) {
    negated_ = conjugated_ = -1;
    for (const Sample& x : samples) {
      const int64_t word = at<int64_t>(x.body, flags_);
      negated_ &= x.negated ? word : ~word;
      conjugated_ &= x.conjugated ? word : ~word;
    }
    if (is_one_bit(negated_) && is_one_bit(conjugated_))
      return storage_ < first_word() && first_word() < sizes_ - 8;
  }
  return false;
}

std::vector<int64_t> TensorMemory::words(const char* body, int64_t ndim) const {
  std::vector<int64_t> row(2 * kWords);
  auto take = [&](int64_t place) {
    const int64_t k = (place - first_word()) / 8;
    row[k] = at<int64_t>(body, place), row[kWords + k] = -1;
  };
  row[0] = at<int64_t>(storage(body), deleter_);
  take(sizes_ - 8);
  for (int64_t d = 0; d < ndim; ++d) take(sizes_ + 8 * d), take(strides_ + 8 * d);
  for (int64_t place = tail() + 8; place <= flags_; place += 8) take(place);
  return row;
}

bool TensorMemory::tells_apart(const Samples& samples) const {
  std::vector<std::vector<int64_t>> seen;
  bool said = false;
  for (const Sample& x : samples) {
    const bool plain = x.ndim <= kMaxDims;
    DlTensor t;
    if (!describe(x.tensor, &t)) {
      PyErr_Clear();  // it has no memory that can be watched
    } else {
      said = true;
      const int64_t bytes = t.address() - x.data;
      if (is_plain(x.body, t) != plain || (t.data && offset(x.body) * t.bits / 8 != bytes))
        return false;
      if (!std::equal(x.sizes.begin(), x.sizes.end(), t.shape)) return false;
      if (!std::equal(x.strides.begin(), x.strides.end(), t.strides)) return false;
    }
    seen.push_back(plain ? words(x.body, x.ndim) : std::vector<int64_t>());
    if (plain) seen.back().push_back(offset(x.body));
    for (size_t k = 0; plain && k + 1 < seen.size(); ++k)
      if (seen[k] == seen.back() && samples[k].facts != x.facts) return false;
  }
  return said;
}

// A holder is null for tensors that never needed a gradient, such as the first sample, and set for
// all that have one. In it, the word of the gradient must be right for every sample.
bool TensorMemory::find_gradients(const Samples& samples) {
  std::vector<const char*> gradients;
  size_t found = 0;
  for (const Sample& x : samples) {
    PyObject* grad = PyObject_GetAttrString(x.tensor, "grad");
    if (grad == nullptr) return false;
    gradients.push_back(grad == Py_None ? nullptr : body(grad));
    Py_DECREF(grad);
    PyTypeObject* type = Py_TYPE(x.tensor);
    if (grad == Py_None || type == types_[0] || type == types_[1]) continue;
    if (found == 2) return false;
    types_[found++] = type;
    Py_INCREF(type);
  }
  for (holder_ = storage_ + 8; holder_ < sizes_ - 8; holder_ += 8) {
    auto held_by = [&](size_t k) { return at<const char*>(samples[k].body, holder_); };
    bool right = held_by(0) == nullptr;
    for (size_t k = 0; k < samples.size(); ++k)
      right = right && (gradients[k] == nullptr || held_by(k) != nullptr);
    for (grad_ = 8; right && grad_ < 128; grad_ += 8) {
      const char* none = nullptr;
      bool all = true;
      for (size_t k = 0; k < samples.size(); ++k) {
        if (held_by(k) == nullptr) continue;
        const char* word = at<const char*>(held_by(k), grad_);
        if (gradients[k] == nullptr && none == nullptr) none = word;
        all = all && word == (gradients[k] == nullptr ? none : gradients[k]);
      }
      no_gradient_ = none;
      if (found == 2 && all && none != nullptr) return true;
    }
  }
  return false;
}

}  // namespace fusedstep
