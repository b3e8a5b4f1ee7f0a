"""The exception that every finding raises."""

from __future__ import annotations


class Fault(Exception):
    """A kernel did what a GPU would not forgive, or asked for what is not modelled here."""
