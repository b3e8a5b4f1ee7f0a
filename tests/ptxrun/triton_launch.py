"""Launches Triton kernels on the CPU: specializes and compiles as for a GPU, executes the PTX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from .faults import Fault
from .machine import run
from .memory import Memory
from .parse import Kernel
from .triton_places import loads_with_other

SCALARS = {
    "fp32": np.float32,
    "fp64": np.float64,
    "u1": np.int8,
    "i1": np.int8,
    **{
        f"{sign}{bits}": np.dtype(f"{sign}{bits // 8}").type
        for sign in "iu"
        for bits in (8, 16, 32, 64)
    },
}


def argument(kind: str, value: Any) -> Any:
    """A runtime argument as a numpy scalar of the size of the kernel's parameter."""
    if kind.startswith("*"):
        return np.uint64(value.data_ptr() if hasattr(value, "data_ptr") else value)
    if kind not in SCALARS:
        raise Fault(f"arguments of type {kind} are not modelled")
    return SCALARS[kind](value)


class TritonOnCpu:
    """Stands for a GPU of one compute capability."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)
        self.backend = make_backend(self.target)
        self._binders: dict[JITFunction, Any] = {}
        self._compiled: dict[Any, tuple[Kernel, Any]] = {}

    def specialize(
        self, function: JITFunction, arguments: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any], dict[str, Any]]:
        """(signature, constants, attributes, bound arguments), as in Triton's own launcher."""
        if function not in self._binders:
            self._binders[function] = create_function_from_signature(
                function.signature, function.params, self.backend
            )
        bound, specialization, _ = self._binders[function](**arguments)
        packed = function._pack_args(self.backend, dict(options), bound, specialization, {})
        _, signature, constants, attributes = packed
        return signature, constants, attributes, bound

    def compiled(
        self,
        function: JITFunction,
        arguments: Mapping[str, Any],
        warps: int,
        **options: Any,
    ) -> tuple[Kernel, Any, list[Any]]:
        """(kernel, Triton's compiled kernel, runtime arguments)."""
        options = {"num_warps": warps, **options}
        signature, constants, attributes, bound = self.specialize(function, arguments, options)
        key = (
            function,
            str(signature),
            str(constants),
            str(attributes),
            str(sorted(options.items())),
        )
        if key not in self._compiled:
            source = ASTSource(
                fn=function, signature=signature, constexprs=constants, attrs=attributes
            )
            result = compile_kernel(source, target=self.target, options=options)
            defined = loads_with_other(result.asm["ttgir"])
            kernel = Kernel(result.asm["ptx"], defined_at=defined)
            self._compiled[key] = (kernel, result)
        kernel, result = self._compiled[key]
        runtime = [
            argument(kind, bound[name]) for name, kind in signature.items() if kind != "constexpr"
        ]
        return kernel, result, runtime

    def launch(
        self,
        function: JITFunction,
        grid: int | Sequence[int],
        arguments: Mapping[str, Any],
        warps: int,
        memory: Memory,
        schedule: int | None = None,
        between_threads: bool = True,
        **compile_options: Any,
    ) -> Counter[str]:
        """Runs a kernel over a grid. Its tensors must be registered in `memory`."""
        kernel, result, runtime = self.compiled(function, arguments, warps, **compile_options)
        if result.metadata.global_scratch_size or result.metadata.num_ctas != 1:
            raise Fault("global scratch memory and clusters are not modelled")
        missing = len(kernel.params) - len(runtime)
        return run(
            kernel,
            grid,
            warps * 32,
            [*runtime, *[np.uint64(0)] * missing],
            memory,
            shared=result.metadata.shared,
            schedule=schedule,
            between_threads=between_threads,
        )
