"""Fused versions of torch.optim's classes, and `param_groups`, which decides what decays."""

from ..plan.flat import declare_shard
from .adafactor import Adafactor
from .adamw import AdamW
from .flat_states import full_state_dict
from .param_groups import param_groups
from .release import enable_gradient_release
from .zero import InZero

__all__ = [
    "Adafactor",
    "AdamW",
    "InZero",
    "declare_shard",
    "enable_gradient_release",
    "full_state_dict",
    "param_groups",
]
