"""The examples of a page for readers."""

import ast
import re
from importlib.util import find_spec


def examples(page):
    """The page's examples by their headings. The first one has what all others start with."""
    heading, found = "", {}
    parts = re.split(r"^(#+ [^\n]*|```python\n.*?^```)$", page.read_text(), flags=re.M | re.S)
    for part in parts:
        if part.startswith("#"):
            heading = part.lstrip("# ")
        elif part.startswith("```python\n"):
            assert heading not in found, f"two examples under {heading}"
            found[heading] = part[len("```python\n") : -len("```")]
    return found


def absent(code):
    """The packages that an example imports and that cannot be imported here."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return sorted(name for name in names if find_spec(name) is None)
