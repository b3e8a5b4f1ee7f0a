"""torch.optim's names, with fused steps, and the groups of parameters that they take."""

from .adafactor import Adafactor
from .adamw import AdamW
from .param_groups import param_groups

__all__ = ["Adafactor", "AdamW", "param_groups"]
