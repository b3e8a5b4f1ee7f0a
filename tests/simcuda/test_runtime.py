"""Tests of the simulator's CUDA runtime, its controls, and the build of libraries."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

from .samples import launch
from .sanitized import environment

pytest_plugins = [f"{__package__}.fixtures"]

# Launches that the hardware refuses: (threads, blocks, shared bytes, the error)
REFUSED = (
    (0, 1, 0, "cudaErrorInvalidConfiguration: invalid configuration argument"),
    (1025, 1, 0, "cudaErrorInvalidConfiguration: invalid configuration argument"),
    (32, 0, 0, "cudaErrorInvalidConfiguration: invalid configuration argument"),
    (32, 1 << 31, 0, "cudaErrorInvalidConfiguration: invalid configuration argument"),
    (32, 1, (48 << 10) + 1, "cudaErrorInvalidValue: invalid argument"),
)


@pytest.mark.parametrize(("block", "grid", "shared", "error"), REFUSED)
def test_launches_that_the_hardware_refuses_return_its_error(block, grid, shared, error, samples):
    assert samples.launch("nothing", grid=grid, block=block, shared=shared) == error
    assert samples.launch("nothing") == ""


def test_a_kernel_takes_no_more_threads_than_its_launch_bounds(samples):
    refused = "cudaErrorInvalidConfiguration: invalid configuration argument"
    assert samples.launch("stages", block=96) == refused
    assert samples.launch("block_sums", block=1056) == refused
    assert samples.launch("nothing", block=1024) == ""
    assert samples.device_facts()[4] == 64


def test_more_shared_memory_must_be_asked_for(samples, controls):
    assert samples.launch("nothing", shared=48 << 10) == ""
    assert samples.allow_shared(100 << 10) == "cudaSuccess"
    assert samples.launch("nothing", shared=100 << 10) == ""
    assert samples.allow_shared(228 << 10) == "cudaErrorInvalidValue"


def test_an_error_can_be_planted_in_any_function_of_the_runtime(samples, controls):
    controls.inject_error(719)
    assert samples.launch("nothing") == "cudaErrorLaunchFailure: unspecified launch failure"
    assert samples.launch("nothing") == ""
    controls.inject_error(100, function="cudaGetDeviceCount")
    assert samples.device_facts()[2] == -1
    controls.inject_error(209, function="cudaFuncGetAttributes")
    assert samples.device_facts()[3] == -1
    assert samples.device_facts()[:4] == [4, 2, 1, 48 << 10]


def test_host_code_is_told_of_the_device_that_the_test_has_set(samples, controls):
    controls.device(multiprocessors=132, blocks_per_multiprocessor=16)
    assert samples.device_facts()[:2] == [132, 8]  # 2,048 threads


def test_launches_are_counted_by_kernel(samples, controls):
    for _ in range(3):
        launch(samples, "nothing")
    launch(samples, "arrivals", (), 32, 1)
    assert sorted(controls.launches().items()) == [
        ("_ZN7samples7nothingENS_5ListsE", 3),
        ("_ZN7samples8arrivalsENS_5ListsE", 1),
    ]


def test_a_hook_gets_the_launch_instead_of_the_simulator(samples, controls):
    seen = []
    controls.hook(lambda *given: seen.append(given))
    x = torch.ones(8)
    options = {"grid": 5, "block": 64, "shared": 12, "n": 77, "mask": 3}
    out, _ = launch(samples, "block_sums", x, 5, **options)
    [(name, grid, block, shared, argument, stream)] = seen
    assert name == "_ZN7samples10block_sumsILb1EEEvNS_5ListsE"
    assert (grid, block, shared, stream) == ((5, 1, 1), (64, 1, 1), 12, 0)
    assert int.from_bytes(argument[8:16], "little") == out.data_ptr()
    assert int.from_bytes(argument[24:28], "little") == 77
    assert (out == -1).all()
    controls.hook(None)
    launch(samples, "arrivals", (), 32, 1)
    assert len(seen) == 1


def test_a_hook_may_return_an_error_or_raise(samples, controls):
    controls.hook(lambda *given: 700)
    assert samples.launch("nothing").startswith("cudaErrorIllegalAddress")

    def refuse(*given):
        raise KeyError("no PTX")

    controls.hook(refuse)
    with pytest.raises(KeyError, match="no PTX"):
        samples.launch("nothing")


# The build of libraries.
SOURCE = """
#include <cuda_runtime.h>
#include "answer.h"
extern "C" int answer() { return ANSWER; }
"""


@pytest.fixture
def building(tmp_path, monkeypatch):
    """The build module, with a cache that has only the simulator in it. `commands` records the
    compilers and linkers that it runs."""
    module = importlib.import_module(f"{__package__}.build")
    simulator = module.recipes([], module.VARIANTS["plain"], [], [])
    module.CACHE.mkdir(parents=True, exist_ok=True)
    ready = {recipe.target().name: recipe.compile() for recipe in simulator}
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    module.CACHE.mkdir()
    for name, file in ready.items():
        (module.CACHE / name).symlink_to(file)
    commands = []
    run = module.run
    monkeypatch.setattr(module, "run", lambda command: (commands.append(command), run(command)))
    (tmp_path / "answer.h").write_text("#define ANSWER 1\n")
    (tmp_path / "sample.cu").write_text(SOURCE)
    module.commands = commands
    return module


def test_a_library_is_built_once_for_each_state_of_its_sources(building, tmp_path):
    arguments = ("sample", [tmp_path / "sample.cu"])
    first = building.build(*arguments, include=[tmp_path])
    assert len(building.commands) == 2  # one source, and the library
    assert building.build(*arguments, include=[tmp_path]) == first
    assert len(building.commands) == 2
    (tmp_path / "answer.h").write_text("#define ANSWER 2\n")
    assert building.build(*arguments, include=[tmp_path]) != first
    assert len(building.commands) == 4
    (tmp_path / "answer.h").write_text("#define ANSWER 1\n")
    assert building.build(*arguments, include=[tmp_path]) == first
    assert len(building.commands) == 4


def test_a_source_that_does_not_compile_leaves_nothing_behind(building, tmp_path):
    (tmp_path / "sample.cu").write_text(
        "#include <cuda_runtime.h>\n__global__ void kernel(int) { __shared__ int x; }\n"
    )
    before = sorted(building.CACHE.iterdir())
    with pytest.raises(RuntimeError, match="the simulator knows dynamic shared memory only"):
        building.build("sample", [tmp_path / "sample.cu"])
    assert sorted(set(building.CACHE.iterdir()) - set(before)) == [
        building.CACHE / "sample-plain.lock"
    ]


def test_two_processes_build_the_same_library_side_by_side(building, tmp_path):
    program = (
        "import importlib, pathlib, sys;"
        f"building = importlib.import_module({building.__name__!r});"
        "cache, source, folder = map(pathlib.Path, sys.argv[1:]); building.CACHE = cache;"
        "print(building.build('sample', [source], include=[folder]))"
    )
    arguments = [building.CACHE, tmp_path / "sample.cu", tmp_path]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    options = {"env": environment("plain"), "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    names = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(names) == 1
    assert len(list(building.CACHE.glob("*.so"))) == 1
