"""The paragraphs of docstrings on the arguments that schedules share, written once."""

from __future__ import annotations

from ..docstrings import describes

PARAGRAPHS = {
    "step": "s: how many steps were made before, from 0. The keyword arguments are the letters of "
    "the formula.",
    "optimizer": "whose groups get the learning rates.",
    "num_warmup_steps": "w: the length of the warm-up.",
    "num_training_steps": "T: the length of the run, with the warm-up.",
    "num_cycles": "c: the number of cycles after the warm-up.",
    "min_lr": "the lowest learning rate.",
    "min_lr_rate": "r: the lowest learning rate as a share of the initial one.",
    "warmup_lr_rate": "a: what the warm-up starts from, as a share of the initial learning rate; "
    "None: 1 / w.",
    "lr_end": "e: the learning rate at the end.",
    "lr_init": "L: the initial learning rate.",
    "power": "the exponent of the decay.",
    "timescale": "k: this many steps after the warm-up the factor is 1 / sqrt(2).",
    "num_stable_steps": "how long the initial learning rate is kept.",
    "num_decay_steps": "the length of the decay.",
    "warmup_type": 'the shape of the rise: "linear", "cosine" or "1-sqrt".',
    "decay_type": 'the shape of the fall: "linear", "cosine" or "1-sqrt".',
    "min_lr_ratio": "r: where the warm-up starts and the decay ends, as a share of the initial "
    "learning rate.",
    "last_epoch": "the last step of a run that goes on; -1: a new run.",
}

with_shared_arguments = describes(PARAGRAPHS)
