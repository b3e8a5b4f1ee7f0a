"""The command `python -m fusedstep.emit csrc [--check]`: see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def headers() -> dict[str, str]:
    """The texts of all headers, by path in csrc."""
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
        # Compare by name: if importing the rules raised it, RuleError cannot be imported either.
        if type(error).__name__ != "RuleError":
            raise
        return str(error)
    stale = [p for p, text in texts.items() if not p.exists() or p.read_text() != text]
    if arguments.check:
        return "\n".join(f"{path} is stale: make rules" for path in stale) or 0
    for path in stale:  # unchanged files keep their time, so nothing is compiled for them
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
        print(f"{path} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
