"""Fused versions of torch.optim's classes, and `param_groups`, which decides what decays."""

from .adafactor import Adafactor
from .adamw import AdamW
from .param_groups import param_groups

__all__ = ["Adafactor", "AdamW", "param_groups"]
