"""The paragraphs of docstrings on the arguments that optimizers share, written once."""

from __future__ import annotations

import inspect
import textwrap
from typing import TypeVar

T = TypeVar("T", bound=type)

# In the order of the signatures.
PARAGRAPHS = {
    "maximize": "ascends: the sign of every g is changed.",
    "foreach": "accepted and kept, because checkpoints and configs hold it. It does not change how "
    "a step is computed.",
    "fused": "the same. With True the step counters are on the parameters' device, and a "
    "``GradScaler`` leaves the unscaling to the step.",
    "capturable": "keeps the step counters on the GPU. A step then never waits for the GPU, and "
    "can be captured in a CUDA graph after one step outside it. A graph replays the numbers it was "
    "captured with, so a learning rate that changes must be a tensor on the GPU. It is an error if "
    "a parameter is on the CPU.",
    "differentiable": "refused if True: a fused step cannot be differentiated through.",
    "max_grad_norm": "clips inside the step: every g is multiplied by ``min(1, max_grad_norm / "
    "(norm + 1e-6))``, where ``norm`` is that of all gradients as one vector. ``.grad`` is not "
    "written. ``grad_norm`` then is the norm as a tensor on the device. It may be changed between "
    "steps, and a state dict does not have it.",
    "state_dtype": 'of the states: ``torch.float32``, ``torch.bfloat16``, or ``"int8"`` (8 bits, '
    "and a float32 scale for each 128 numbers of a row); None: the parameter's, and float32 if "
    "there are master weights. A checkpoint of another dtype is converted when it is loaded.",
    "master_weights": "True: 16-bit parameters have float32 master weights, and train as float32 "
    "ones do. Beside bfloat16 an int16 rest is kept, beside float16 a float32 copy. 8: a rest of 8 "
    "bits, so a master weight of 24.",
    "stochastic_rounding": "rounds bfloat16 parameters and states up or down by chance, so that "
    "small updates count on average. The noise depends on ``seed``, step, parameter and place "
    "alone.",
    "seed": "of the noise.",
    "backend": '``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"``, ``"reference"``; by default '
    "``FUSEDSTEP_BACKEND`` or auto.",
}


def with_shared_arguments(kind: T) -> T:
    """Decorates an optimizer: its docstring gets the paragraphs on those of its arguments that it
    does not describe itself. They come after its own, before the example."""
    if kind.__doc__ is None:  # python -OO
        return kind
    # Python 3.13 takes the indentation away itself.
    head, separator, example = inspect.cleandoc(kind.__doc__).partition("\n\nExample:")
    taken = inspect.signature(kind).parameters
    missing = [name for name in PARAGRAPHS if name in taken and f"\n    {name}: " not in head]
    lines = [line for name in missing for line in _paragraph(name)]
    title = [] if "\nArguments:\n" in head else ["", "Arguments:"]
    kind.__doc__ = "\n".join([head, *title, *lines]) + separator + example
    return kind


def _paragraph(name: str) -> list[str]:
    return textwrap.wrap(
        f"{name}: {PARAGRAPHS[name]}",
        width=96,
        initial_indent=" " * 4,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
