"""Tells whether a compiled module was built from the rules of this package.

C++ and Python know a rule by its number, and a table by its layout: with a module of other rules, a
step would take one rule for another. So `csrc/rules.h` carries this fingerprint, a module gives it
back, and the two are compared when the module is loaded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import __path__ as folders


def fingerprint() -> str:
    """Of the texts of all files that rules are found in."""
    found = hashlib.sha256()
    for path in sorted(path for folder in folders for path in Path(folder).glob("*.py")):
        found.update(f"{path.name}\n{path.read_text()}\n".encode())
    return found.hexdigest()[:16]
