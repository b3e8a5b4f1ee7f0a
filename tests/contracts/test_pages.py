"""Pages for readers: links that lead somewhere, here and on the site, and what scripts write."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import fusedstep

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    ROOT / "docs" / "scripts" / "README.md",
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


@pytest.fixture
def script(monkeypatch):
    """Imports a script of docs/, which is no package."""
    monkeypatch.syspath_prepend(str(DOCS))
    own = {path.stem for path in DOCS.glob("*.py")}
    yield importlib.import_module
    for name in own:
        sys.modules.pop(name, None)


LINKED = [
    ("[a](choose.md#memory)", "[a](choose.md#memory)"),
    ("[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
    ("[`a`](../python/fusedstep/schedules/README.md#which-one)", "[`a`](schedules.md#which-one)"),
    ("[a](scripts/cpu_offload.py)", "[a](scripts.md#cpu-offload)"),
    ("[a](../setup.py)", "[a](https://h.org/x/setup.py)"),
    ("[a](../README.md#status)", "[a](https://h.org/x/README.md#status)"),
    ("![a](pictures/rule.svg)", "![a](/files/docs/pictures/rule.svg)"),
    ("[a](https://b.org/c) [b](#c)", "[a](https://b.org/c) [b](#c)"),
    ("`[a](../setup.py)` and [b](../setup.py)", "`[a](../setup.py)` and [b](https://h.org/x/setup.py)"),
    ("```\n[a](../setup.py)\n```\n", "```\n[a](../setup.py)\n```\n"),
]  # fmt: skip


@pytest.mark.parametrize(("here", "there"), LINKED)
def test_links_hold_on_the_site(script, here, there):
    assert script("pages").linked(here, DOCS / "index.md", "https://h.org/x/") == there


def test_without_a_repository_only_the_words_of_a_link_stay(script):
    linked = script("pages").linked
    assert (
        linked("[a `b` c](../setup.py), [d](faq.md)", DOCS / "index.md") == "a `b` c, [d](faq.md)"
    )


def test_the_site_has_every_page_with_its_pictures_and_no_link_outside(
    script, tmp_path, monkeypatch
):
    pages = script("pages")
    monkeypatch.delenv(pages.SOURCE, raising=False)
    assert pages.main([str(tmp_path)]) == 0
    laid_out = {path.stem for path in tmp_path.glob("*.md")}
    listed = [name for names in pages.CONTENTS.values() for name in names]
    assert {path.stem for path in DOCS.glob("*.md")} <= laid_out
    assert set(listed) <= laid_out and len(listed) == len(set(listed))
    contents = (tmp_path / "index.md").read_text()
    assert all(f"\n{name}\n" in contents for name in laid_out - {"index"})
    for page in tmp_path.glob("*.md"):
        for link in links_of(page.read_text()):
            if "://" not in link and not link.startswith("#"):
                name = link.partition("#")[0]
                assert (tmp_path / name.lstrip("/")).exists(), f"{page.name}: {link}"


def test_the_api_page_has_every_public_name_and_its_newest_sentence(script):
    names = script("names")
    text = names.PAGE.read_text()
    assert names.written(text) == text, "run python docs/names.py"
    tables = dict(re.findall(r"<!-- names: ([\w.]+) -->\n(.*?)<!-- end", text, re.DOTALL))
    rooms = [
        name for name in fusedstep.__all__ if name not in ("__version__", "register", "unregister")
    ]
    for room in (*rooms, "frameworks"):
        module = importlib.import_module(f"fusedstep.{room}")
        public = getattr(module, "__all__", names.PUBLIC.get(f"fusedstep.{room}"))
        documented = "\n".join(names.directives(f"fusedstep.{room}"))
        for name in public:
            assert f"| `{name}` |" in tables[f"fusedstep.{room}"], f"fusedstep.{room}.{name}"
            is_here = names.home(f"fusedstep.{room}", name) == f"fusedstep.{room}"
            assert is_here == bool(re.search(rf"[.: ]{name}(\(\))?$", documented, re.MULTILINE))


def test_a_stale_api_page_is_found(script):
    names = script("names")
    text = names.PAGE.read_text().replace("Muon: same arguments", "Muon: some arguments")
    assert names.written(text) != text


def test_the_pictures_are_those_of_their_script(script):
    pictures = script("pictures")
    assert {path.stem for path in pictures.FOLDER.iterdir()} == set(pictures.PICTURES)
    for name, draw in pictures.PICTURES.items():
        shown = (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        assert draw().svg() == shown, "run python docs/pictures.py"
        assert len(shown) < 10_000


DOCSTRING = """Lion, by its paper:

    p = p - lr sign(u)
    m = beta2 m

Some words, with an example:

    more = 1

Arguments:
    lr: the learning rate.

Example:
    >>> opt = Lion()
"""


def test_formulas_of_docstrings_are_literal_blocks_and_sections_stay(script):
    conf = script("conf")
    lines = DOCSTRING.splitlines()
    conf.formulas_are_literal(None, "class", "Lion", None, None, lines)
    text = "\n".join(lines)
    assert "paper:\n\n::\n\n    p = p - lr sign(u)\n    m = beta2 m\n\nSome words" in text
    assert "example:\n\n::\n\n    more = 1\n\nArguments:\n    lr: the" in text
    assert text.count("::\n") == 2
