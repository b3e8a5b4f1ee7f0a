"""StreamingAverage: the mean of a metric's last values, which GreedyLR may judge by."""

from __future__ import annotations

import math
from typing import Any


class StreamingAverage:
    """The mean of the last values.

    Arguments:
        window_size: of how many values.

    Example:
        >>> mean = StreamingAverage(window_size=2)
        >>> [mean.streamavg(x) for x in (1.0, 3.0, 5.0)]
        [1.0, 2.0, 4.0]
    """

    def __init__(self, window_size: int) -> None:
        self.window_size = window_size
        self.values: list[float] = []
        self.sum = 0.0

    def streamavg(self, value: float) -> float:
        """Adds a value and returns the mean."""
        self.values.append(value)
        self.sum += value
        if len(self.values) > self.window_size:
            self.sum -= self.values.pop(0)
        if not math.isfinite(self.sum):  # subtracting a nan that left the window leaves a nan
            self.sum = sum(self.values)
        return self.sum / len(self.values)

    def state_dict(self) -> dict[str, Any]:
        """The window and its sum."""
        return {"window_size": self.window_size, "values": [*self.values], "sum": self.sum}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned; missing keys get their defaults."""
        self.window_size = state_dict.get("window_size", self.window_size)
        self.values = [*state_dict.get("values", ())]
        self.sum = state_dict.get("sum", 0.0)
