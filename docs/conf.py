"""Sphinx' settings for the site. `make docs` builds it from the pages that pages.py lays out."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))

import fusedstep

project = "fusedstep"
author = "the authors of fusedstep"
version = release = fusedstep.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["files"]
html_theme = "furo"
html_title = f"fusedstep {release}"
html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = "friendly", "monokai"

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # frameworks.md goes from its title to the third level
highlight_language = "text"
smartquotes_action = "D"  # dashes only: quotes in texts are often code

default_role = "code"  # docstrings take single backticks for code, too
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
# Types of other packages: their pages are not read, so that a build needs no network.
nitpick_ignore_regex = [(r"py:.*", r"(?!fusedstep\.).*")]

SECTION = re.compile(r"^(Arguments|Attributes|Example|Examples|Returns|Raises|Yields):$")


def formulas_are_literal(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Our docstrings begin with an indented formula, which Sphinx would take for a quotation."""
    text: list[str] = []
    literal, own = False, True
    for line in lines:
        if SECTION.match(line.strip()):
            own = False  # the sections indent their text
        indented = line.startswith("    ")
        if own and indented and not literal and text and not text[-1].strip():
            text += ["::", ""]
        if line.strip():
            literal = own and indented
            own = own or not (indented or SECTION.match(line.strip()))
        text.append(line)
    lines[:] = text


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", formulas_are_literal, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
