"""`python -m fusedstep.emit csrc [--check]`: see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def headers() -> dict[str, str]:
    """The texts by their place in csrc."""
    from .cut import cut_header
    from .layout import fingerprint_header, layout_header
    from .rules import rules_headers

    return {
        **rules_headers(),
        "rules/layout.h": layout_header(),
        "rules/fingerprint.h": fingerprint_header(),
        "cuda/cut.h": cut_header(),
    }


def main() -> int | str:
    parser = argparse.ArgumentParser(prog="python -m fusedstep.emit")
    parser.add_argument("csrc", type=Path, help="the folder of the headers")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if one is stale")
    arguments = parser.parse_args()
    try:
        texts = {arguments.csrc / place: text for place, text in headers().items()}
    except ValueError as error:
        # By its name: it may have been raised when the rules were imported, and then none of their
        # modules can be.
        if type(error).__name__ != "RuleError":
            raise
        return str(error)
    stale = [p for p, text in texts.items() if not p.exists() or p.read_text() != text]
    if arguments.check:
        return "\n".join(f"{path} is stale: make rules" for path in stale) or 0
    for path in stale:  # what has not changed keeps its time, and nothing is compiled for it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
        print(f"{path} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
