"""A new elementwise rule needs one file in `rules/` and a class, and runs on all backends.

The test copies the package, the C++ sources and the rule to a new folder. It prints the headers
there and builds both C++ modules, without the factored rules and the other elementwise ones, which
would take minutes: one for one instruction set, one for the CUDA simulator. Then one process takes
the same steps with all backends.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fusedstep
from fusedstep.rules import RULES
from tests.simcuda import build

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "toy_rule"

# It has literals without a tensor, literals that float32 rounds, a call of another text, and an
# infinity that must stay.
RULE = '''
"""A toy: the sign of a momentum."""

from .decay import decayed, signed_decay
from .numbers import div, maximum, where
from .spec import Rule


def sign(x):
    return where(x > 0.0, 1.0, where(x < 0.0, -1.0, 0.0))


def toy(p, g, m, rate, decay):
    m = where(g > m, 0.1, 0.7) * g + 0.3 * m
    p = decayed(p, decay) - rate * sign(m)
    p = p - div(0.001, maximum(m, 0.3))
    return p, m


def scalars(step, *, lr, weight_decay):
    return {"decay": signed_decay(lr * weight_decay), "rate": lr / step}


RULES = (Rule("toy", ("m",), ("rate", "decay"), (toy,)),)
'''

CLASS = """
import torch

from fusedstep.optim.base import FusedOptimizer
from fusedstep.rules import toy


class Toy(FusedOptimizer):
    def __init__(self, params, lr, weight_decay, backend):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, backend)

    def _new_state(self, group, param, grad):
        return {"m": torch.zeros_like(param)}

    def _state_shapes(self, group, param):
        return {"m": param.shape}

    def _rule(self, group, param):
        return "toy"

    def _scalars(self, group, step, dtype):
        return toy.scalars(step, lr=group["lr"], weight_decay=group["weight_decay"])
"""

STEPS = """
import math, sys
from pathlib import Path
import torch
from fusedstep import backends, native
from fusedstep.backends import cuda
from tests import simcuda
from toy_optimizer import Toy

module = simcuda.load(Path(sys.argv[1]), "_toy_cuda")[0]
assert native.reason == "" and native.why_stale(module) == "", native.reason
backends.BACKENDS["simcuda"] = cuda.CudaBackend("simcuda", lambda: module, ("cpu",))
names = ["reference", "cpu", "simcuda"]
names += [] if backends.BACKENDS["triton"].why_absent() else ["triton"]
shapes = [(), (7,), (33, 5), (0,), (9000,)]


def steps(backend, dtype):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    params[2][0, 0] = math.inf
    groups = [{"params": params[::2], "weight_decay": 0.7}, {"params": params[1::2], "lr": 0.02}]
    optimizer = Toy(groups, 1.25, 0.1, backend)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
        params[4].grad[:3] = torch.tensor([0.0, math.inf, math.nan])
        optimizer.step()
    return [*params, *(optimizer.state[param]["m"] for param in params)]


for dtype in (torch.float32, torch.bfloat16, torch.float64):
    expected = steps("reference", dtype)
    assert all(x.dtype == dtype for x in expected) and expected[2][0, 0] == math.inf
    for name in names[1:]:
        for k, (x, y) in enumerate(zip(steps(name, dtype), expected, strict=True)):
            assert torch.equal(x.nan_to_num(5), y.nan_to_num(5)), (name, dtype, k, x, y)
print("equal:", *names)
"""

# These replace the factored rules.
CPU_STUB = """
#include "dispatch.h"
namespace fusedstep {
Walk FUSEDSTEP_FACTORED(const LaunchArgs&, bool) { return nullptr; }
}  // namespace fusedstep
"""
CUDA_STUB = """
#include "cuda/instances.h"
namespace fusedstep::cuda {
Kernel phase_kernel(Unit, int, bool, int, bool, const int32_t*) { return {}; }
}  // namespace fusedstep::cuda
"""


def put(path, text):
    """Leaves an equal file alone, so that its object is not compiled again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def lay_out():
    """Copies the package without its C++ modules, the C++ sources, the rule and its class."""
    shutil.rmtree(WORK / "fusedstep", ignore_errors=True)
    shutil.rmtree(WORK / "csrc", ignore_errors=True)
    no_builds = shutil.ignore_patterns("*.so", "__pycache__", "kernels")
    shutil.copytree(Path(fusedstep.__file__).parent, WORK / "fusedstep", ignore=no_builds)
    shutil.copytree(ROOT / "kernels", WORK / "fusedstep" / "kernels", ignore=no_builds)
    shutil.copytree(ROOT / "csrc", WORK / "csrc")
    remove_other_rules()
    put(WORK / "fusedstep" / "rules" / "toy.py", RULE)
    put(WORK / "toy_optimizer.py", CLASS)
    put(WORK / "csrc" / "cpu" / "dispatch_factored.cpp", CPU_STUB)
    put(WORK / "csrc" / "cuda" / "factored.cu", CUDA_STUB)


def remove_other_rules():
    """Removes the elementwise rules that an optimizer has, and the names of the optimizers."""
    for rule in RULES.values():
        module = rule.update.__module__.rpartition(".")[2]
        if not rule.factored and module != "accumulate":
            (WORK / "fusedstep" / "rules" / f"{module}.py").unlink(missing_ok=True)
    (WORK / "fusedstep" / "optim" / "__init__.py").write_text("")


def run(*arguments):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(WORK), str(ROOT)])
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=WORK, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_rule_of_one_file_steps_alike_on_all_backends():
    lay_out()
    printed = run("-m", "fusedstep.emit", "csrc")
    # No source of the factored rules.
    assert set(printed.split()[::2]) == {
        f"csrc/rules{own}" for own in ("/facts.h", ".h", "/fingerprint.h")
    }
    csrc = WORK / "csrc"
    # All levels are the baseline's, without flags of their own.
    names = ("walk_avx2", "walk_avx512", "FUSEDSTEP_LEVEL")
    levels = [f"{name}=walk_baseline" for name in names]
    for own in ("floor", "squares"):
        names = (f"walk_avx2_{own}", f"walk_avx512_{own}", f"FUSEDSTEP_{own.upper()}")
        levels += [f"{name}=walk_baseline_{own}" for name in names]
    levels.append("FUSEDSTEP_FACTORED=walk_baseline_factored")
    sources = [*sorted(csrc.glob("*.cpp")), *sorted((csrc / "cpu").glob("*.cpp"))]
    native = build("_native", sources, include=[csrc], defines=levels)
    shutil.copy(native, WORK / "fusedstep" / "_native.so")
    sources = [csrc / "cuda" / "bindings.cpp", *sorted((csrc / "cuda").glob("*.cu"))]
    defines = ["FUSEDSTEP_CUDA_MODULE=_toy_cuda"]
    simulated = build("_toy_cuda", sources, include=[csrc], defines=defines)
    put(WORK / "steps.py", STEPS)
    done = run("steps.py", simulated)
    assert done.startswith("equal: reference cpu simcuda"), done
    pytest.importorskip("triton", minversion="3.4")
    assert done == "equal: reference cpu simcuda triton\n"
