"""`make budgets`: compiles every kernel for every GPU and writes what it takes. A backend that
cannot be compiled here keeps its budgets. `make budgets-triton` names the one backend."""

from __future__ import annotations

import importlib.util
import itertools
import sys

from tests.support import budgets, cuda_compiled


def of_cuda() -> None:
    file = cuda_compiled.module_file()
    if file is None or cuda_compiled.cuobjdump() is None:
        print("cuda: kept, since the kernels were not built here: that needs nvcc")
        return
    resources = cuda_compiled.resources(file)
    found = {
        target: cuda_compiled.with_accesses(file, target, resources)
        for target in cuda_compiled.TARGETS
    }
    report(budgets.CUDA, cuda_compiled.release(file), cuda_compiled.table(found))


def of_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        print("triton: kept, since Triton is not installed here")
        return
    from tests.support import compiled, compiled_checks, triton_gate

    with compiled.workers() as pool:
        found = [triton_gate.found_on(pool, target) for target in triton_gate.TARGETS]
    table = compiled_checks.measured(itertools.chain(*found))
    report(budgets.TRITON, triton_gate.RELEASE, table)


def report(backend: budgets.Budgets, measured_with: str, table: budgets.Table) -> None:
    changed = backend.differences(table)[:-1]
    backend.write(measured_with, table)
    print(*changed, f"{backend.file}: {len(table)} kernels, {len(changed)} changed", sep="\n")


if __name__ == "__main__":
    for name, write in (("cuda", of_cuda), ("triton", of_triton)):
        if name in (sys.argv[1:] or [name]):
            write()
