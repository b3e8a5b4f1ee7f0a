// Counts a change of tensors, so that autograd refuses to use what a step has overwritten.
#pragma once

#include <Python.h>

#include <cstdint>

namespace fusedstep {

// torch's Python function for this looks up the type of each tensor, which takes longer than the
// count. So we call torch's C++ function. Its linker symbol names the types of its arguments: if they
// change, it is not found. `learn` calls it on a sample and looks whether that was counted.
class Versions {
 public:
  // `function` is the address of torch::autograd::impl::bump_version(const at::Tensor&).
  bool learn(int64_t function, PyObject* sample);
  bool known() const { return bump_ != nullptr; }
  // For a list of tensors. None may be an inference tensor, which has no version.
  void increment(PyObject* tensors) const;

 private:
  // An at::Tensor is a pointer to its C++ object.
  using Bump = void (*)(const char* const& body);
  Bump bump_ = nullptr;
};

}  // namespace fusedstep
