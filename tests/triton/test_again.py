"""Kernels that are launched again without Triton's binder. The first tests replace Triton's
compiled kernels by fakes; the last one runs Triton's own driver on a libcuda that loads nothing."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", minversion="3.4")

import triton
import triton.backends.nvidia.driver as nvidia

from fusedstep.gpu import tables
from fusedstep.kernels import again, launch
from tests.support import recorded_triton
from tests.support.cases import CASES, each
from tests.support.recorded_cuda import started

CASE = {case.name: case for case in CASES}
ADAMW, ADAFACTOR = CASE["adamw"], CASE["adafactor"]
STREAM = 77
SHAPES = [(3,), (4, 5), (64, 64)]
CHANGING = ("table", "scalar_row_of", "scalars", "controls")


class Launcher:
    """Stands for the launcher of NVIDIA's driver."""

    global_scratch_size = profile_scratch_size = 0

    def __init__(self):
        self.calls = []

    def __call__(self, *arguments):
        self.calls.append(arguments)


class Compiled:
    """Stands for a compiled kernel."""

    function, packed_metadata = 123, (4, 1, 0)

    def __init__(self):
        self.run = Launcher()


class Fakes:
    def __init__(self):
        self.ordinary = []  # (kernel, programs, arguments, compiled) of ordinary launches
        self.compiled = Compiled

    def run(self, kernel, programs, arguments, options):
        self.ordinary.append((kernel, programs, arguments, self.compiled()))
        return self.ordinary[-1][-1]

    def launches_of(self, optimizer):
        """How many launches of a step are ordinary, and how many are not."""
        kept, before = [own[-1] for own in self.ordinary], len(self.ordinary)
        again_before = sum(len(compiled.run.calls) for compiled in kept)
        optimizer.step()
        return len(self.ordinary) - before, sum(len(c.run.calls) for c in kept) - again_before


@pytest.fixture
def fakes(monkeypatch):
    recorded_triton.register(monkeypatch)
    made = Fakes()
    monkeypatch.setattr(launch, "run", made.run)
    monkeypatch.setattr(triton.compiler, "CompiledKernel", Compiled)
    monkeypatch.setattr(nvidia, "CudaLauncher", Launcher)
    monkeypatch.setattr(tables, "current_stream", lambda device: STREAM)
    return made


def begun(fakes, case=ADAMW):
    """An optimizer after its first step, whose launches are ordinary, and their number."""
    optimizer, _ = started(case, SHAPES, backend="triton")
    return optimizer, len(fakes.ordinary)


@each([ADAMW, ADAFACTOR, CASE["hf-adafactor-momentum"]])
def test_the_launches_of_later_steps_are_the_same_without_the_binder(case, fakes):
    optimizer, count = begun(fakes, case)
    for step in range(2, 5):
        assert fakes.launches_of(optimizer) == (0, count)
        for kernel, programs, arguments, compiled in fakes.ordinary:
            call = compiled.run.calls[step - 2]
            assert call[:9] == (programs, 1, 1, STREAM, 123, (4, 1, 0), None, None, None)
            for name, given in zip(kernel.arg_names, call[9:], strict=True):
                value = arguments[name]
                if name not in CHANGING:
                    assert given == (value.data_ptr() if torch.is_tensor(value) else value)


def test_a_step_passes_its_own_addresses(fakes, monkeypatch):
    optimizer, count = begun(fakes)
    kernel, _, arguments, compiled = fakes.ordinary[-1]
    for _ in range(2):
        current, real = {}, launch.TritonLauncher.current

        def seen(self, inputs, current=current, real=real):
            current.update(real(self, inputs))
            return current

        with monkeypatch.context() as patch:
            patch.setattr(launch.TritonLauncher, "current", seen)
            assert fakes.launches_of(optimizer) == (0, count)
        assert set(current) == set(CHANGING)
        for name, tensor in current.items():
            place = kernel.arg_names.index(name)
            assert compiled.run.calls[-1][9 + place] == tensor.data_ptr()
            assert tensor.dtype == arguments[name].dtype


def unaligned(tensor):
    room = torch.empty(tensor.numel() + 3, dtype=tensor.dtype)
    start = 1 if room.data_ptr() % 16 == 0 else 0
    return room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("name", CHANGING)
def test_addresses_of_another_alignment_need_an_ordinary_launch(name, fakes, monkeypatch):
    optimizer, count = begun(fakes)
    real = launch.TritonLauncher.current

    def current(self, inputs):
        found = real(self, inputs)
        return {**found, name: unaligned(found[name])}

    with monkeypatch.context() as patch:
        patch.setattr(launch.TritonLauncher, "current", current)
        assert fakes.launches_of(optimizer) == (count, 0)
    assert fakes.launches_of(optimizer) == (0, count)


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_see_every_launch(hook, fakes, monkeypatch):
    optimizer, count = begun(fakes)
    runtime = triton.knobs.runtime
    with monkeypatch.context() as patch:
        patch.setattr(runtime, hook, lambda metadata: None)
        assert fakes.launches_of(optimizer) == (count, 0)
    assert fakes.launches_of(optimizer) == (0, count)
    chain = getattr(runtime, hook)
    if chain is not None:  # Triton 3.4 has one hook, later ones a chain

        def own(metadata):
            pass

        chain.add(own)
        try:
            assert fakes.launches_of(optimizer) == (count, 0)
        finally:
            chain.remove(own)
        assert fakes.launches_of(optimizer) == (0, count)


def test_other_options_need_an_ordinary_launch(fakes, monkeypatch):
    optimizer, count = begun(fakes)
    monkeypatch.setattr(triton.knobs.runtime, "debug", not triton.knobs.runtime.debug)
    assert fakes.launches_of(optimizer) == (count, 0)
    assert fakes.launches_of(optimizer) == (0, count)


def test_a_plan_holds_the_kernels_that_it_launches_again(fakes):
    """Newer releases of Triton unload a kernel that nobody holds."""
    _optimizer, count = begun(fakes)
    compiled = [weakref.ref(own[-1]) for own in fakes.ordinary]
    fakes.ordinary.clear()
    gc.collect()
    assert count == len([own for own in compiled if own() is not None]) > 0


def without_launcher(monkeypatch):
    monkeypatch.setattr(nvidia, "CudaLauncher", type("Other", (), {}))


def with_scratch(monkeypatch):
    monkeypatch.setattr(Launcher, "global_scratch_size", 128)


def of_another_version(monkeypatch):
    monkeypatch.setattr(triton, "__version__", "4.0.0")


def not_compiled(monkeypatch):
    monkeypatch.setattr(triton.compiler, "CompiledKernel", type("Other", (), {}))


def without_a_stream(monkeypatch):
    monkeypatch.setattr(tables, "current_stream", lambda device: None)


def with_a_hook_of_the_kernel(monkeypatch):
    monkeypatch.setattr(launch.elementwise, "pre_run_hooks", [print])


@pytest.mark.parametrize(
    "unknown",
    [
        without_launcher,
        with_scratch,
        of_another_version,
        not_compiled,
        without_a_stream,
        with_a_hook_of_the_kernel,
    ],
)
def test_what_is_unknown_is_launched_as_usual(unknown, fakes, monkeypatch):
    unknown(monkeypatch)
    optimizer, count = begun(fakes)
    for _ in range(2):
        assert fakes.launches_of(optimizer) == (count, 0)


def test_the_installed_version_is_known():
    numbers = tuple(int(n) for n in triton.__version__.split(".")[:2])
    assert numbers in again.KNOWN
    assert again.options_now() is not None


# Triton's own driver.

TESTS = Path(__file__).parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="the real libcuda is loaded")
@pytest.mark.parametrize("case", ["adamw", "adafactor"])
def test_the_driver_gets_the_same_launches(case, tmp_path):
    """Grid, block, stream and every parameter, from Triton's compiler and its launcher in C."""
    library = tmp_path / "libcuda.so.1"
    include = Path(nvidia.__file__).parent / "include"
    compile_it = ["gcc", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{include}"]
    subprocess.run([*compile_it, TESTS / "support" / "no_cuda.c", "-o", library], check=True)
    (tmp_path / "libcuda.so").symlink_to(library)  # Triton 3.4 links against this name
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "TRITON_LIBCUDA_PATH": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.triton_on_no_cuda", case],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ordinary, kept = (line.split() for line in done.stdout.splitlines())
    assert ordinary[0] == "ordinary" and kept[0] == "again"
    assert len(ordinary) > 1 and ordinary[1:] == kept[1:]
