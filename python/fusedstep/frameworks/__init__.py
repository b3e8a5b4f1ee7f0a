"""Optimizers and schedules by the names of other frameworks: `register` puts ours there."""

from .registration import register, unregister

__all__ = ["register", "unregister"]
