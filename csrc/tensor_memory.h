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

// The function from the table that torch 2.10 and later publishes for DLPack. Null if the table has
// an unknown version.
DlFromObject dl_from_object(PyObject* exchange_api);

// DLPack is public, but slow (mostly for a lock that we already hold), and it does not say whether
// a tensor is negated or conjugated. So we read the few words of a tensor that hold all this. No
// torch header says where they are. `learn` finds the places once, on samples with known facts. It
// fails unless samples with different facts have different words.
class TensorMemory {
 public:
  // Tensors with more dimensions keep their sizes elsewhere.
  static constexpr int kMaxDims = 5;

  // `samples` is a list of tuples: the tensor; the addresses of its C++ object, its storage and the
  // storage's data; whether it is negated, conjugated, copy-on-write; its number of dimensions; a
  // number that identifies all its facts.
  bool learn(PyObject* samples, DlFromObject from_object);
  bool known() const { return known_; }

  const char* body(PyObject* tensor) const { return at<const char*>(tensor, body_); }
  const char* storage(const char* body) const { return at<const char*>(body, storage_); }
  int64_t data(const char* storage) const { return at<int64_t>(storage, data_); }
  // Not zero if the tensor is negated or conjugated.
  int64_t flags(const char* body) const { return at<int64_t>(body, flags_) & (negated_ | conjugated_); }
  int64_t flags_of(bool negated) const { return negated ? negated_ : 0; }

  // Whether `words` give everything about the tensor except the address of its storage's data. `t`
  // is what DLPack says about it.
  bool is_plain(const char* body, const DlTensor& t) const {
    return t.ndim <= kMaxDims && reinterpret_cast<const char*>(t.shape) == body + sizes_ &&
           reinterpret_cast<const char*>(t.strides) == body + strides_ && storage(body) != nullptr;
  }
  std::vector<int64_t> words(const char* body, int64_t ndim) const {
    std::vector<int64_t> all;
    each_word(body, ndim, [&](int64_t word) { return all.push_back(word), true; });
    return all;
  }
  bool has_words(const char* body, int64_t ndim, const int64_t* words) const {
    return each_word(body, ndim, [&](int64_t word) { return word == *words++; });
  }

 private:
  struct Sample;
  using Samples = std::vector<Sample>;

  bool find_storage(const Samples& samples);
  bool find_sizes(const Samples& samples, DlFromObject from_object);
  bool find_flags(const Samples& samples);
  bool tells_apart(const Samples& samples, DlFromObject from_object) const;

  // After space for kMaxDims strides come: offset in the storage, elements, dtype, device, flags.
  int64_t tail() const { return strides_ + 8 * kMaxDims; }

  template <class T>
  static T at(const void* base, int64_t offset) {
    return *reinterpret_cast<const T*>(static_cast<const char*>(base) + offset);
  }

  template <class Visit>
  bool each_word(const char* body, int64_t ndim, Visit&& visit) const {
    // The deleter of the data: copy-on-write changes it.
    if (!visit(at<int64_t>(storage(body), deleter_)) || !visit(at<int64_t>(body, sizes_ - 8)))
      return false;
    for (int64_t d = 0; d < ndim; ++d)
      if (!visit(at<int64_t>(body, sizes_ + 8 * d)) || !visit(at<int64_t>(body, strides_ + 8 * d)))
        return false;
    for (int64_t place = tail(); place <= flags_; place += 8)
      if (!visit(at<int64_t>(body, place))) return false;
    return true;
  }

  int64_t body_ = 0, storage_ = 0, data_ = 0, deleter_ = 0, sizes_ = 0, strides_ = 0, flags_ = 0;
  int64_t negated_ = 0, conjugated_ = 0;
  bool known_ = false;
};

}  // namespace fusedstep
