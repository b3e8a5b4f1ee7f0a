"""transformers.optimization's names, with fused steps."""

from .adafactor import Adafactor
from .adafactor_schedule import AdafactorSchedule, get_adafactor_schedule
from .adamw import AdamW

__all__ = ["Adafactor", "AdafactorSchedule", "AdamW", "get_adafactor_schedule"]
