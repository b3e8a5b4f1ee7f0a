"""torch.optim's names, with fused steps."""

from .adafactor import Adafactor
from .adamw import AdamW

__all__ = ["Adafactor", "AdamW"]
