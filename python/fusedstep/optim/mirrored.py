"""Which class of ours mirrors a class of torch or transformers."""

from __future__ import annotations

import sys
from typing import Any

import torch

from .by_name import found

# Where the classes that a package of ours mirrors are found, under the same names.
PEERS = {"optim": "torch.optim", "hf": "transformers.optimization"}


def mirrored() -> dict[type, type[torch.optim.Optimizer]]:
    """Ours by the class that it mirrors. It is found by its name, so a new optimizer is there by
    itself. What we lack is not in it.

    Example:
        >>> mirrored()[torch.optim.AdamW]
        <class 'fusedstep.optim.adamw.AdamW'>
    """
    ours = {}
    for folder, name, own in found():
        # Nobody can have a class of a module that was never imported.
        peer = getattr(sys.modules.get(PEERS[folder]), name, None)
        if isinstance(peer, type) and issubclass(peer, torch.optim.Optimizer):
            ours[peer] = own
    return ours


def ours_for(kind: Any) -> Any:
    """Ours if the class is one that we mirror, else the same class."""
    return mirrored().get(kind, kind) if isinstance(kind, type) else kind
