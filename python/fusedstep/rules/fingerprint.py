"""A hash of the rules, to check that a compiled module was built from them.

C++ and Python share the numbers of rules and the layout of tables. With a module built from other
rules, a step would run the wrong one. So each module carries this fingerprint, and Python compares
it when it loads the module.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from . import __path__ as folders


def fingerprint() -> str:
    """A hash of all files in the folders of rules."""
    found = hashlib.sha256()
    for path in sorted(path for folder in folders for path in Path(folder).glob("*.py")):
        found.update(f"{path.name}\n{path.read_text()}\n".encode())
    return found.hexdigest()[:16]
