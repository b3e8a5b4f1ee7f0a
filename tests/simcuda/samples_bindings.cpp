// The Python module of the sample kernels. It takes addresses as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "samples.h"

namespace py = pybind11;

PYBIND11_MODULE(SAMPLES_MODULE, m) {
  m.def(
      "launch",
      [](const std::string& name, unsigned grid, unsigned block, size_t shared, uintptr_t x,
         uintptr_t out, uintptr_t counters, int n, int stages, int shift, unsigned mask) {
        return samples::launch(name, grid, block, shared,
                               {reinterpret_cast<const float*>(x), reinterpret_cast<float*>(out),
                                reinterpret_cast<int*>(counters), n, stages, shift, mask});
      },
      py::arg("name"), py::arg("grid") = 1, py::arg("block") = 32, py::arg("shared") = 0,
      py::arg("x") = 0, py::arg("out") = 0, py::arg("counters") = 0, py::arg("n") = 0,
      py::arg("stages") = 0, py::arg("shift") = 0, py::arg("mask") = ~0u);
  m.def("allow_shared", samples::allow_shared);
  m.def("device_facts", samples::device_facts);
}
