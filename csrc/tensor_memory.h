// Finds where a torch tensor keeps its address, sizes and flags, so a watch can read them in place.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

namespace fusedstep {

// The part of DLPack 1.3's C interface that we use.
struct DlTensor {
  void* data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;

  int64_t address() const { return reinterpret_cast<int64_t>(data) + int64_t(byte_offset); }
};

using DlFromObject = int (*)(PyObject* tensor, DlTensor* out);

// DLPack is public, but slow (mostly for a lock that we already hold), and it does not say whether
// a tensor is negated or conjugated; before torch 2.10 there is only a function of Python, which is
// slower. So we read the few words of a tensor that hold all this. No torch header says where they
// are. `learn` finds the places once, on samples with known facts. It fails unless samples with
// different facts have different words. It also looks for gradients, which a watch can do without.
class TensorMemory {
 public:
  // Tensors with more dimensions keep their sizes elsewhere.
  static constexpr int kMaxDims = 5;
  static constexpr int kWords = 18;

  // `source` says what tensors are: a capsule with the table that torch 2.10 and later publishes for
  // DLPack, or a function of Python, which returns (address, device type, device index, code, bits)
  // as DLPack would, or None. `samples` is a list of tuples: the tensor; the addresses of its C++
  // object, its storage and the storage's data; whether it is negated, conjugated, copy-on-write; its
  // sizes; its strides; a number that identifies all its facts.
  bool learn(PyObject* source, PyObject* samples);
  bool known() const { return known_; }

  // Asks the source. False, with an exception of Python, if it cannot say.
  bool describe(PyObject* tensor, DlTensor* out) const;

  const char* body(PyObject* tensor) const { return at<const char*>(tensor, body_); }
  const char* storage(const char* body) const { return at<const char*>(body, storage_); }
  int64_t data(const char* storage) const { return at<int64_t>(storage, data_); }
  // Loads what a watch reads into the cache. A body may begin anywhere in a line of 64 bytes.
  void prefetch(PyObject* tensor) const { __builtin_prefetch(reinterpret_cast<char*>(tensor) + body_); }
  void prefetch(const char* body, const char* storage) const {
    for (int64_t place : {storage_, sizes_, strides_, flags_}) __builtin_prefetch(body + place);
    __builtin_prefetch(storage + data_);
  }
  void prefetch_gradient(const char* holder) const { __builtin_prefetch(holder + grad_); }

  // What holds the tensor's gradient, if that can be read in place: then no Python object is made of
  // the gradient. Null if not: it was not learned, or the tensor never needed a gradient.
  const char* holder(const char* body) const {
    return grad_ ? at<const char*>(body, holder_) : nullptr;
  }
  // The C++ object of the gradient, or null if there is none.
  const char* gradient(const char* holder) const {
    const char* found = holder ? at<const char*>(holder, grad_) : no_gradient_;
    return found == no_gradient_ ? nullptr : found;
  }
  // Whether torch's getter would return the same for tensors of this type. Others may have their own.
  bool has_plain_gradient(PyObject* tensor) const {
    return Py_TYPE(tensor) == types_[0] || Py_TYPE(tensor) == types_[1];
  }

  // Not zero if the tensor is negated or conjugated.
  int64_t flags(const char* body) const { return at<int64_t>(body, flags_) & (negated_ | conjugated_); }
  int64_t flags_of(bool negated) const { return negated ? negated_ : 0; }

  // Whether the words of a tensor give everything about it except the address of its storage's data.
  // `t` is what DLPack says about it.
  bool is_plain(const char* body, const DlTensor& t) const {
    return t.ndim <= kMaxDims && reinterpret_cast<const char*>(t.shape) == body + sizes_ &&
           reinterpret_cast<const char*>(t.strides) == body + strides_ && storage(body) != nullptr;
  }
  // The words of tensors that are alike, wherever their data are: in `row`, kWords values, then as many
  // masks. The first value is the deleter of the data, which copy-on-write changes.
  std::vector<int64_t> words(const char* body, int64_t ndim) const;
  // Pairs of words and no branches: leaving out some words would take longer than comparing all.
  bool has_words(const char* body, const char* storage, const int64_t* row) const {
    const Pair* words = reinterpret_cast<const Pair*>(body + first_word());
    const Pair* values = reinterpret_cast<const Pair*>(row);
    const Pair* masks = reinterpret_cast<const Pair*>(row + kWords);
    Pair differs = {at<int64_t>(storage, deleter_) ^ row[0], 0};
#pragma GCC unroll 9
    for (int k = 0; k < kWords / 2; ++k) differs |= (words[k] ^ values[k]) & masks[k];
    return (differs[0] | differs[1]) == 0;
  }
  // Elements from the beginning of the storage's data. It is not one of the words.
  int64_t offset(const char* body) const { return at<int64_t>(body, tail()); }

 private:
  using Pair = int64_t __attribute__((vector_size(16), aligned(8), may_alias));
  struct Sample;
  using Samples = std::vector<Sample>;

  bool find_storage(const Samples& samples);
  bool find_sizes(const Samples& samples);
  bool find_flags(const Samples& samples);
  bool find_gradients(const Samples& samples);
  bool tells_apart(const Samples& samples) const;

  // After space for kMaxDims strides come: offset in the storage, elements, dtype, device, flags.
  int64_t tail() const { return strides_ + 8 * kMaxDims; }
  // The words end with the flags. They begin before the number of dimensions, which is before sizes.
  int64_t first_word() const { return flags_ + 8 - 8 * kWords; }

  template <class T>
  static T at(const void* base, int64_t offset) {
    return *reinterpret_cast<const T*>(static_cast<const char*>(base) + offset);
  }

  DlFromObject from_object_ = nullptr;
  PyObject* asked_ = nullptr;  // the function of Python, kept alive for good
  int64_t body_ = 0, storage_ = 0, data_ = 0, deleter_ = 0, sizes_ = 0, strides_ = 0, flags_ = 0;
  int64_t negated_ = 0, conjugated_ = 0;
  int64_t holder_ = 0, grad_ = 0;      // 0: not learned
  const char* no_gradient_ = nullptr;  // what a holder has instead
  PyTypeObject* types_[2] = {};        // of samples with a gradient; never freed
  bool known_ = false;
};

// What this process learned.
extern TensorMemory memory;

}  // namespace fusedstep
