"""What transformers' Trainer takes as `optimizer_cls_and_kwargs`, made of its own arguments."""

from __future__ import annotations

from typing import Any

import torch

from ..optim.by_name import classes
from ..optim.mirrored import mirrored, ours_for


def optimizer_cls_and_kwargs(
    args: Any, model: Any = None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Our class and its settings for ``TrainingArguments(optim=...)``, for
    ``Trainer(optimizer_cls_and_kwargs=...)``. The Trainer still makes the groups with and without
    decay. Nothing in transformers is changed; ``fusedstep.register`` needs no change of the script.

    Arguments:
        args: the ``TrainingArguments``.
        model: the model, which transformers needs for a few optimizers that we do not have.

    Example:
        >>> from transformers import TrainingArguments
        >>> args = TrainingArguments("unused", optim="adafactor", learning_rate=1e-3, use_cpu=True)
        >>> optimizer_cls_and_kwargs(args)[1]
        {'lr': 0.001, 'scale_parameter': False, 'relative_step': False}
    """
    try:
        from transformers import Trainer
    except ImportError as error:
        raise ImportError(
            "optimizer_cls_and_kwargs asks transformers' Trainer, which cannot be imported: "
            f"{error}"
        ) from error
    found, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    own = ours_for(found)
    if own not in classes().values():
        kind = f"{found.__module__}.{getattr(found, '__qualname__', found)}"
        name = getattr(args.optim, "value", args.optim)
        known = ", ".join(sorted(f"{peer.__module__}.{peer.__name__}" for peer in mirrored()))
        raise ValueError(
            f"optim={name!r} is {kind}, which fusedstep does not "
            f"mirror. Leave optimizer_cls_and_kwargs out, or choose one that is: {known}."
        )
    return own, settings
