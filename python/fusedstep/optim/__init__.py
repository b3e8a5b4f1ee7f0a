"""Fused versions of torch.optim's classes. `by_name` makes them from a config, and `param_groups`
decides what decays."""

from ..plan.flat import declare_shard
from .adafactor import Adafactor
from .adamw import AdamW
from .by_name import by_name, names
from .flat_states import full_state_dict
from .param_groups import param_groups
from .release import enable_gradient_release
from .zero import InZero

__all__ = [
    "Adafactor",
    "AdamW",
    "InZero",
    "by_name",
    "declare_shard",
    "enable_gradient_release",
    "full_state_dict",
    "names",
    "param_groups",
]
