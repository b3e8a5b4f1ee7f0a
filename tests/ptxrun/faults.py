"""Fault: the exception for everything that the executor finds."""

from __future__ import annotations


class Fault(Exception):
    """The kernel does something wrong, or uses something that is not modelled here."""
