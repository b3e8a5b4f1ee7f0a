"""What an install does without compilers, and what the packages have in them."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from fusedstep import native

ROOT = Path(__file__).parents[2]


def setup_py(*words, path=None, **variables):
    """Runs setup.py in a process whose PATH may lack the compilers."""
    own = {**os.environ, **variables}
    own.pop("CXX", None)
    if path is not None:
        own["PATH"] = str(path)
    command = [sys.executable, "setup.py", "-q", *words]
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)


@pytest.fixture
def programs(tmp_path):
    """A folder of programs that do nothing, by name."""

    def folder(*names):
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
            (tmp_path / name).chmod(0o755)
        return tmp_path

    return folder


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ((), "no cmake: pip install cmake ninja"),
        (("cmake",), "no C\\+\\+ compiler: apt install g\\+\\+"),
    ],
)
def test_without_a_tool_the_install_goes_on_and_says_what_is_missing(programs, there, said):
    done = setup_py("--version", path=programs(*there))
    assert done.returncode == 0
    assert re.search(rf"fusedstep: built without C\+\+ kernels, .*: {said}", done.stderr)
    done = setup_py("--version", path=programs(*there), FUSEDSTEP_NATIVE="ON")
    assert done.returncode != 0
    assert re.search(
        rf"fusedstep: FUSEDSTEP_NATIVE is ON, but the kernels cannot be built: {said}", done.stderr
    )
    assert setup_py("--version", path=programs(*there), FUSEDSTEP_NATIVE="OFF").stderr == ""


def test_a_build_that_fails_ends_with_what_it_needs(programs, tmp_path):
    done = setup_py(
        "build_ext", "--build-lib", str(tmp_path / "out"), path=programs("cmake", "c++")
    )
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fusedstep: the C++ kernels were not built (see above): they need GCC 9")
    assert "apt install g++" in last and "pip install cmake ninja" in last


def test_a_wrong_choice_is_refused():
    done = setup_py("--version", FUSEDSTEP_NATIVE="yes")
    assert done.returncode != 0
    assert "FUSEDSTEP_NATIVE should be AUTO, ON or OFF but is: 'yes'" in done.stderr


def test_the_workflows_test_what_the_classifiers_promise():
    project = (ROOT / "pyproject.toml").read_text()
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]
    wheels = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())["jobs"]["native"]
    matrix = tests["strategy"]["matrix"]
    assert matrix["python"] == promised and len(promised) > 4
    built = re.findall(r"cp(3)(\d+)-", wheels["env"]["CIBW_BUILD"])
    assert [".".join(version) for version in built] == promised
    pinned = re.search(r'"torch==([\d.]+)"', project).group(1)
    oldest = re.search(r'"torch>=([\d.]+)"', project).group(1)
    assert matrix["torch"] == [pinned]
    first, last = ([own["python"], own["torch"]] for own in matrix["include"])
    assert first == [promised[0], f"{oldest}.0"]
    assert last[0] == promised[-1]
    assert last[1].split(".")[:2] != pinned.split(".")[:2]  # another one than we develop with


@pytest.mark.parametrize("file", [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"])
def test_every_file_for_others_can_be_read(file):
    assert yaml.safe_load(file.read_text())


STEP = """
import sys, warnings
sys.modules["fusedstep._native"] = None  # as if it was not built
import torch, fusedstep
param = torch.nn.Parameter(torch.ones(3))
param.grad = torch.ones(3)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        fusedstep.optim.AdamW([param]).step()
for warning in seen:
    print(warning.message)
print(param.tolist())
"""


def test_the_first_step_without_kernels_warns_once():
    done = subprocess.run(
        [sys.executable, "-c", STEP], capture_output=True, text=True, check=True, cwd=ROOT
    )
    warning, numbers = done.stdout.splitlines()
    assert warning.startswith(
        "cpu tensors are updated by plain torch. cpu: the C++ kernels are not"
    )
    assert "install CMake and a C++ compiler" in warning
    assert numbers != "[1.0, 1.0, 1.0]"


def test_the_modules_serve_every_python():
    """Python without a global lock has no limited API."""
    if sys.version_info < (3, 13) or sys._is_gil_enabled():
        assert native.module.__file__.endswith("_native.abi3.so")


@pytest.mark.slow
def test_the_source_package_is_whole_and_the_wheels_have_what_they_need(tmp_path):
    done = setup_py("sdist", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(listed.stdout.splitlines()) - names

    own = ("bdist_wheel", "-d", str(tmp_path), "--bdist-dir", str(tmp_path / "b"))
    done = setup_py("build", "-b", str(tmp_path / "c"), *own, FUSEDSTEP_NATIVE="OFF")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as packed:
        inside = set(packed.namelist())
        (metadata,) = (name for name in inside if name.endswith(".dist-info/METADATA"))
        readme = packed.read(metadata).decode()
    assert "# fusedstep" in readme and not re.search(r"\]\((?!https?:|#)", readme)
    package = {p.relative_to(ROOT / "python").as_posix() for p in ROOT.glob("python/**/*.py")}
    assert inside >= {*package, "fusedstep/py.typed", "fusedstep/kernels/launch.py"}
