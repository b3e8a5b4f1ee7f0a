// simcuda_controls: the Python module that sets up the simulator. It is in the same library as the
// simulated module.
#include <pybind11/pybind11.h>

#include "sim/settings.h"

namespace py = pybind11;
using sim::settings;

namespace {

// The hook gets (kernel's symbol, grid, block, shared bytes, argument struct, stream). It returns
// nothing, or the number of the error that the launch should return.
cudaError_t call_hook(const py::function& hook, const sim::Launch& launch) {
  const std::string name = sim::name_of(launch.kernel);
  if (name.empty()) throw std::runtime_error("simcuda: the kernel's name is hidden from the linker");
  const auto triple = [](dim3 shape) { return py::make_tuple(shape.x, shape.y, shape.z); };
  const py::bytes argument(static_cast<const char*>(launch.argument), launch.argument_bytes);
  const py::object result = hook(name, triple(launch.grid), triple(launch.block), launch.shared,
                                 argument, reinterpret_cast<uintptr_t>(launch.stream));
  return result.is_none() ? cudaSuccess : cudaError_t(result.cast<int>());
}

void set_hook(const py::object& hook) {
  if (hook.is_none()) {
    settings.hook = nullptr;
    return;
  }
  // A raw reference, so copies of the std::function need no GIL. The hook is never freed.
  const py::function function = hook.cast<py::function>();
  function.inc_ref();
  settings.hook = [raw = function.ptr()](const sim::Launch& launch) {
    const py::gil_scoped_acquire acquired;
    try {
      return call_hook(py::reinterpret_borrow<py::function>(raw), launch);
    } catch (py::error_already_set& error) {
      // The hook's own error is for Python: the code between need not know pybind11.
      error.restore();
      throw sim::HookError("simcuda: the hook raised an error");
    }
  };
}

py::dict launches() {
  py::dict result;
  for (const auto& [kernel, count] : settings.launches) result[sim::name_of(kernel).c_str()] = count;
  return result;
}

}  // namespace

PYBIND11_MODULE(simcuda_controls, m) {
  m.doc() = "Controls of the simulator in this library";
  // A module of pybind11 keeps the hook's error too.
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const sim::HookError&) {
    }
  });
  m.def("reset", [] { settings = sim::initial_settings(); }, "restores all settings and counts");
  m.def(
      "seed", [](uint64_t seed) { settings.seed = seed, settings.launches_with = 0; }, py::arg("seed"),
      "0: threads and blocks run in order; else at random, in the same way for the same seed");
  m.def(
      "resident", [](int blocks) { settings.resident = blocks; }, py::arg("blocks"),
      "blocks under way at a time; 0: as many as the occupancy functions promise");
  m.def(
      "device",
      [](int multiprocessors, int blocks) {
        settings.multiprocessors = multiprocessors, settings.blocks_per_multiprocessor = blocks;
      },
      py::arg("multiprocessors"), py::arg("blocks_per_multiprocessor"), "the device of host code");
  m.def("hook", set_hook, py::arg("function"),
        "called with (symbol, grid, block, shared, argument, stream) instead of simulating; None "
        "removes it");
  m.def(
      "inject_error",
      [](int error, const std::string& function) {
        settings.next_error[function] = cudaError_t(error);
      },
      py::arg("error"), py::arg("function") = "cudaLaunchKernel",
      "makes the next call of this runtime function return the error");
  m.def("launches", launches, "how often each kernel was launched, by symbol, since the last reset");
  m.def("memsets", [] { return settings.memsets; });
}
