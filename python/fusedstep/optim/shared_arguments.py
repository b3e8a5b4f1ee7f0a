"""The paragraphs of docstrings on the arguments that optimizers share, written once."""

from __future__ import annotations

from ..docstrings import describes

PARAGRAPHS = {
    "params": "parameters, (name, parameter) pairs, or groups: dicts with ``params`` and with the "
    "arguments that are the group's own.",
    "maximize": "ascends: the sign of every g is changed.",
    "foreach": "accepted and kept, because checkpoints and configs hold it. It does not change how "
    "a step is computed.",
    "fused": "accepted and kept, as ``foreach``. With True the step counters are on the "
    "parameters' device, and a ``GradScaler`` leaves the unscaling to the step.",
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

with_shared_arguments = describes(PARAGRAPHS)
