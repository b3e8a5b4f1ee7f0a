"""Runs steps with Triton's own compiler and driver on the libcuda of `no_cuda.c`, which records
launches. Prints those of a step through `kernel[grid]`, and those of a step without the binder.

    python -m tests.support.triton_on_no_cuda CASE
"""

import ctypes
import sys

import torch
import triton
import triton.backends.nvidia.driver as nvidia

from fusedstep.backends.triton import TritonBackend
from fusedstep.gpu import tables
from fusedstep.kernels import again, launch
from tests.support.cases import CASES, make_params, set_grads

STREAM = 77
NUMBERS, PARAMS = 8, 32  # as in no_cuda.c
SHAPES = [(3,), (4, 5), (300, 33), (64, 64)]


class Driver(nvidia.CudaDriver):
    """Triton's driver for a GPU that is not there."""

    def __init__(self):
        self.utils, self.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
        self.get_device_capability = lambda device: (9, 0)
        self.get_current_stream = lambda device: STREAM
        self.get_current_device = lambda: 0


def main(name):
    triton.runtime.driver.set_active(Driver())
    TritonBackend.why_absent = lambda self: ""
    TritonBackend.devices = lambda self: ("cpu",)
    tables.current_stream = lambda device: STREAM
    library = ctypes.CDLL("libcuda.so.1")
    library.last_launch.restype = ctypes.POINTER(ctypes.c_uint64 * (NUMBERS + PARAMS))
    ordinary, kept, launches, current = [], [], [], []
    real_run, real_again = launch.run, again.KeptKernels.launch
    real_begin, real_current = launch.TritonLauncher._run, launch.TritonLauncher.current

    def begin(self, *arguments):
        launches[:] = self.launches
        real_begin(self, *arguments)

    def same(self, inputs):
        """The same tensors in both steps, so that even the addresses are the same."""
        if len(current) < len(optimizer._plan.launchers):
            current.append((self, real_current(self, inputs)))
        return next(tensors for launcher, tensors in current if launcher is self)

    def recorded(found, kernel, make):
        """Makes a launch, and keeps what libcuda was given."""
        params = sum(not p.is_constexpr for p in kernel.params)
        library.expect_params(params)
        before = library.launches()
        result = make()
        if library.launches() > before:
            numbers = library.last_launch().contents[: NUMBERS + params]
            found.append(":".join(map(str, (kernel.__name__, *numbers))))
        return result

    def run(kernel, *arguments):
        return recorded(ordinary, kernel, lambda: real_run(kernel, *arguments))

    def launch_again(self, index):
        return recorded(kept, launches[index].kernel, lambda: real_again(self, index))

    launch.run, again.KeptKernels.launch = run, launch_again
    launch.TritonLauncher._run, launch.TritonLauncher.current = begin, same
    params = make_params(SHAPES)
    optimizer = next(case for case in CASES if case.name == name).make(params, backend="triton")
    set_grads(params, 0)
    for _ in range(2):
        optimizer.step()
    assert library.launches() == len(ordinary) + len(kept)
    print("ordinary", *ordinary)
    print("again", *kept)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
