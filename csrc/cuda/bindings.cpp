// The Python module fusedstep._cuda: takes work lists and launches kernels. Addresses and streams
// are integers.
#include "../binding.h"
#include "launch.h"

#if !defined(FUSEDSTEP_CUDA_MODULE)
#define FUSEDSTEP_CUDA_MODULE _cuda
#endif

#define FUSEDSTEP_TEXT(name) #name
#define FUSEDSTEP_NAME(name) FUSEDSTEP_TEXT(name)
#define FUSEDSTEP_INIT(name) PyInit_##name
#define FUSEDSTEP_INIT_OF(name) FUSEDSTEP_INIT(name)

namespace fusedstep::cuda {
namespace {

PyMethodDef functions[] = {def<&device_count>("device_count"),
                           def<&built_for>("built_for"),
                           def<&why_unusable>("why_unusable"),
                           {}};
PyMethodDef of_bucket[] = {def<&Bucket::set_scratch>("set_scratch"),
                           def<&Bucket::set_exchange>("set_exchange"),
                           def<&Bucket::add>("add"),
                           def<&Bucket::set_squares>("set_squares"),
                           def_unlocked<&Bucket::launch_squares>("launch_squares"),
                           def_unlocked<&Bucket::launch>("launch"),
                           {}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          FUSEDSTEP_NAME(FUSEDSTEP_CUDA_MODULE),
                          nullptr,
                          -1,
                          functions,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace
}  // namespace fusedstep::cuda

PyMODINIT_FUNC FUSEDSTEP_INIT_OF(FUSEDSTEP_CUDA_MODULE)() {
  using namespace fusedstep;
  using namespace fusedstep::cuda;
  return make_module(definition, [](PyObject* module) {
    add_constant(module, "CHUNK", int64_t(kChunk));
    add_constant(module, "VALUES", int64_t(kValues));
    add_constant(module, "FINGERPRINT", cuda::fingerprint());
    add_class<
        &make<cuda::Bucket, int, bool, int, std::vector<int>, std::vector<int>, int, int, int, int64_t>,
        9>(module, "fusedstep._cuda.Bucket", of_bucket);
  });
}
