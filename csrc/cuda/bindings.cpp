// The Python module fusedstep._cuda: takes work lists and launches kernels. Addresses and streams
// are integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "launch.h"

#if !defined(FUSEDSTEP_CUDA_MODULE)
#define FUSEDSTEP_CUDA_MODULE _cuda
#endif

namespace py = pybind11;

namespace fusedstep::cuda {

PYBIND11_MODULE(FUSEDSTEP_CUDA_MODULE, module) {
  module.attr("CHUNK") = kChunk;
  module.attr("VALUES") = kValues;
  module.attr("FINGERPRINT") = fingerprint();
  module.def("device_count", &device_count);
  module.def("built_for", &built_for);
  module.def("why_unusable", &why_unusable);
  py::class_<Bucket>(module, "Bucket", py::module_local())
      .def(py::init<int, bool, int, const std::vector<int>&, const std::vector<int>&, int, int, int,
                    int64_t>())
      .def("set_scratch", &Bucket::set_scratch)
      .def("set_exchange", &Bucket::set_exchange)
      .def("add", &Bucket::add)
      .def("set_squares", &Bucket::set_squares)
      .def("launch_squares", &Bucket::launch_squares, py::call_guard<py::gil_scoped_release>())
      .def("launch", &Bucket::launch, py::call_guard<py::gil_scoped_release>());
}

}  // namespace fusedstep::cuda
