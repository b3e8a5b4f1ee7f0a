"""Pages for readers: links that lead somewhere, and the length of README."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("tests/*/README.md"),
    ROOT / "python" / "fusedstep" / "schedules" / "README.md",
]


def links_of(text: str) -> list[str]:
    without_code = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", without_code)


def anchors_of(text: str) -> set[str]:
    """What GitHub and mkdocs make of headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", own.lower()).strip().replace(" ", "-") for own in headings}


def broken(page: Path, text: str) -> list[str]:
    found = []
    for link in links_of(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else (page.parent / name).resolve()
        known = anchors_of(target.read_text()) if anchor and target.exists() else set()
        if not target.exists() or (anchor and anchor not in known):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert broken(page, page.read_text()) == []


def test_a_broken_link_is_found():
    text = (
        "[a](CONTRIBUTING.md) [b](#how-fast) [c](nowhere.md) [d](README.md#no-such)\n## How fast\n"
    )
    assert broken(ROOT / "README.md", text) == ["nowhere.md", "README.md#no-such"]


def test_readme_leads_to_every_page_of_docs_and_is_one_screen():
    text = (ROOT / "README.md").read_text()
    linked = {link.partition("#")[0] for link in links_of(text)}
    assert {str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")} <= linked
    assert len(text.splitlines()) <= 130
