"""Launches compiled kernels again, without Triton's binder and cache key.

`kernel[grid](...)` looks at every argument of every launch to find the compiled kernel. That takes
8 to 50 us, its launcher 1 or 2. Between the steps of a plan only addresses change, so the kernel
that the first launch found is kept, and later steps call its launcher. Launches are ordinary ones
where this could make a difference: with hooks of profilers, other options, addresses that are not
aligned, memory that Triton allocates, and with drivers and versions that were not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import triton
from torch import Tensor

# The versions whose CompiledKernel.run was read: it takes grid, stream, function, metadata, hooks,
# then all arguments of the kernel.
KNOWN = ((3, 4), (3, 5), (3, 6), (3, 7), (3, 8), (3, 9))
ALIGNED = 16  # Triton compiles another kernel for pointers that are not multiples of this
OPTIONS = ("instrumentation_mode", "fpsan_homomorphic_casts")
HOOKS = ("launch_enter_hook", "launch_exit_hook", "add_stages_inspection_hook")

# Takes a stream and the addresses of the arguments that change.
Launch = Callable[[int, dict[str, int]], None]


class KeptKernels:
    """The kernels of a plan's launches, by their number, after each was launched once."""

    def __init__(self) -> None:
        # With the compiled kernel, because Triton 3.8 unloads one that nobody holds.
        self._kept: dict[int, tuple[Launch, Any]] = {}
        self._options: tuple[Any, ...] | None = None
        self._stream = 0
        self._at: dict[str, int] | None = None

    def begin(self, changing: dict[str, Tensor], stream: Any) -> None:
        """Begins a step. `changing` are the arguments that may be other tensors in each step, of
        the same dtypes."""
        self._at = None
        options = options_now()
        if options is None or not isinstance(stream, int):
            return
        if options != self._options:
            self._options, self._kept = options, {}
        self._stream, self._at = stream, _addresses(changing)

    def launch(self, index: int) -> bool:
        """Launches kernel `index` again. Returns False if it needs an ordinary launch."""
        if self._at is None or index not in self._kept:
            return False
        again, _ = self._kept[index]
        again(self._stream, self._at)
        return True

    def keep(
        self, index: int, kernel: Any, compiled: Any, programs: int, arguments: dict[str, Any]
    ) -> None:
        """Keeps what an ordinary launch of `kernel` returned, if it can be launched again."""
        if self._at is not None:
            again = _again(kernel, compiled, programs, arguments, self._at)
            if again is not None:
                self._kept[index] = again, compiled


def options_now() -> tuple[Any, ...] | None:
    """What chooses a compiled kernel besides its arguments; None if launches must be ordinary."""
    knobs = getattr(triton, "knobs", None)
    if knobs is None:
        return None
    for name in HOOKS:
        hook = getattr(knobs.runtime, name, None)
        if hook is not None and getattr(hook, "calls", True):  # an empty chain calls nothing
            return None
    chosen = (getattr(knobs.compilation, name, None) for name in OPTIONS)
    return knobs.runtime.debug, *chosen


def _addresses(changing: dict[str, Tensor]) -> dict[str, int] | None:
    """None if kept kernels, all compiled for aligned addresses, cannot take them."""
    found = {name: tensor.data_ptr() for name, tensor in changing.items()}
    bits = 0
    for address in found.values():
        bits |= address
    return found if bits % ALIGNED == 0 else None


def _again(
    kernel: Any, compiled: Any, programs: int, arguments: dict[str, Any], changing: Iterable[str]
) -> Launch | None:
    run = _launcher(compiled)
    names = getattr(kernel, "arg_names", [])
    if run is None or kernel.pre_run_hooks or set(names) != set(arguments):
        return None
    # Addresses instead of tensors: for a tensor the launcher asks the driver where it is.
    values = [v.data_ptr() if isinstance(v, Tensor) else v for v in map(arguments.get, names)]
    places = [(names.index(name), name) for name in changing]
    function, metadata = compiled.function, compiled.packed_metadata

    def launch(stream: int, at: dict[str, int]) -> None:
        for place, name in places:
            values[place] = at[name]
        run(programs, 1, 1, stream, function, metadata, None, None, None, *values)

    return launch


def _launcher(compiled: Any) -> Any:
    """The launcher of a compiled kernel, if it is NVIDIA's, allocates nothing and passes nothing of
    its own."""
    if _version() not in KNOWN or not isinstance(compiled, triton.compiler.CompiledKernel):
        return None  # the second: interpreted, or not compiled yet
    from triton.backends.nvidia.driver import CudaLauncher

    run = compiled.run
    if type(run) is not CudaLauncher:
        return None
    allocates = [getattr(run, f"{name}_scratch_size", 0) for name in ("global", "profile")]
    return None if any(allocates) or getattr(run, "gsan_enabled", False) else run


def _version() -> tuple[int, ...]:
    return tuple(int(number) for number in triton.__version__.split(".")[:2])
