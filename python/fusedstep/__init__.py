"""Fused multi-tensor optimizers for PyTorch: one changed import, one pass over memory."""

__version__ = "0.1.0"
