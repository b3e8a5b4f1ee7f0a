"""Lays the pages of the site out for Sphinx: `python docs/pages.py build/docs/pages`.

The pages are plain markdown that also reads well in the repository. Here they get what only the
site needs: the table of contents, the API from docstrings, and links that hold on the site. A link
to a file that is no page leads to the repository, if FUSEDSTEP_DOCS_SOURCE says where that is (such
as https://host/owner/fusedstep/blob/main); else only its words stay.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SCRIPTS = DOCS / "scripts"
SOURCE = "FUSEDSTEP_DOCS_SOURCE"
PICTURES = (".png", ".svg")

# Pages that lie elsewhere, and their names on the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
    "docs/scripts/README.md": "scripts",
    "python/fusedstep/schedules/README.md": "schedules",
}
# The table of contents. A page that is not in it stands under "More".
CONTENTS = {
    "Start": ("index", "choose", "migrate", "scripts", "faq"),
    "Use": ("backends", "precision", "distributed", "frameworks", "options", "schedules", "api"),
    "Know": ("how-it-works", "exactness", "performance", "versions"),
    "Take part": ("contributing", "changelog", "security"),
}
TOCTREE = "\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{names}\n```\n"

# Code, which stays as it is, or a link: its mark of a picture, words, target and anchor.
PART = re.compile(
    r"```.*?```|`[^`\n]*`|(!?)\[((?:[^\[\]`]|`[^`]*`)*)\]\(([^)\s#]*)(#[^)\s]*)?\)", re.DOTALL
)
NAMES = re.compile(r"(<!-- names: ([\w.]+) -->\n.*?<!-- end of names -->\n)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Every page, and its name on the site."""
    found = {path: path.stem for path in sorted(DOCS.glob("*.md"))}
    return found | {ROOT / path: name for path, name in ELSEWHERE.items()}


def contents(names: list[str]) -> str:
    """The table of contents, in Sphinx' words."""
    listed = [name for of_caption in CONTENTS.values() for name in of_caption]
    captions = {**CONTENTS, "More": tuple(name for name in names if name not in listed)}
    return "".join(
        TOCTREE.format(
            caption=caption,
            names="\n".join("self" if name == "index" else name for name in of_caption),
        )
        for caption, of_caption in captions.items()
        if of_caption
    )


def linked(text: str, page: Path, source: str = "") -> str:
    """The text of a page with the links that it has on the site."""
    names = pages()

    def link(match: re.Match[str]) -> str:
        mark, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (page.parent / target).resolve()
        if path in names:
            return f"[{words}]({names[path]}.md{anchor})"
        if path.parent == SCRIPTS:
            return f"[{words}](scripts.md#{path.stem.replace('_', '-')})"
        inside = path.relative_to(ROOT).as_posix()
        if mark:
            return f"![{words}](/files/{inside})"
        return f"[{words}]({source.rstrip('/')}/{inside}{anchor})" if source else words

    return PART.sub(link, text)


def pictures(text: str, page: Path) -> set[Path]:
    """The pictures that a page shows."""
    found = (match for match in PART.finditer(text) if match[1] and "://" not in match[3])
    return {(page.parent / match[3]).resolve() for match in found}


def documented(block: str, module: str) -> str:
    """A table of names with links, and below it what documents them, in Sphinx' words."""
    import names

    def link(match: re.Match[str]) -> str:
        return f"| {{py:obj}}`{match[1]} <{names.home(module, match[1])}.{match[1]}>` |"

    table = re.sub(r"^\| `(\w+)` \|", link, block, flags=re.MULTILINE)
    return f"{table}\n```{{eval-rst}}\n" + "\n".join(names.directives(module)) + "\n```\n"


def scripts() -> str:
    """The scripts themselves, for the page on them."""
    return "".join(
        f"\n({path.stem.replace('_', '-')})=\n## {path.name}\n```python\n{path.read_text()}```\n"
        for path in sorted(SCRIPTS.glob("*.py"))
    )


def main(words: list[str]) -> int:
    target = Path(words[0] if words else ROOT / "build" / "docs" / "pages")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    source = os.environ.get(SOURCE, "")
    for page, name in pages().items():
        text = page.read_text(encoding="utf-8")
        for picture in pictures(text, page):
            copy = target / "files" / picture.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, copy)
        text = linked(text, page, source)
        text = NAMES.sub(lambda match: documented(match[1], match[2]), text)
        if name == "scripts":
            text += scripts()
        if name == "index":
            text += contents(sorted(pages().values()))
        (target / f"{name}.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
