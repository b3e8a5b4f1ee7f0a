"""The examples of the pages run, and print what the text shows."""

import re
from pathlib import Path

import pytest
import torch

from tests.support.page_examples import absent, examples

ROOT = Path(__file__).parents[2]
PAGES = {path.stem: path for path in ROOT.glob("docs/*.md")}
HERE = ("choose", "faq", "how-it-works", "index", "migrate", "options")
# Pages whose examples other tests run: on several processes, inside frameworks, or with checks of
# their own.
ELSEWHERE = {
    "distributed": "tests/distributed/test_docs.py",
    "frameworks": "tests/frameworks/test_docs.py",
    "precision": "tests/optim/test_precision_docs.py",
}
NEEDS_A_GPU = re.compile(r"<!-- needs a GPU -->\n```python\n(.*?)```", re.DOTALL)
SHOWN = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)


def run(code, names, capsys):
    """Runs an example, and compares what it prints with the comments behind `print`."""
    exec(compile(code, "an example", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert not SHOWN.findall(code) or printed == SHOWN.findall(code)


@pytest.mark.parametrize("name", HERE)
def test_the_examples_of_a_page_run(name, capsys):
    text = PAGES[name].read_text()
    on_a_gpu = NEEDS_A_GPU.findall(text)
    blocks = [code for code in examples(PAGES[name]).values() if code not in on_a_gpu]
    assert blocks and not any(map(absent, blocks))
    names = {}
    for code in blocks:
        run(code, names, capsys)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_examples_that_need_a_gpu_run(capsys):
    for name in HERE:
        first, *_ = blocks = list(examples(PAGES[name]).values())
        for code in NEEDS_A_GPU.findall(PAGES[name].read_text()):
            assert code in blocks
            names = {}
            run(first, names, capsys)
            run(code, names, capsys)


def test_the_schedules_of_their_page_can_be_made():
    page = ROOT / "python" / "fusedstep" / "schedules" / "README.md"
    (code,) = examples(page).values()
    names = {"opt": torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)}
    exec(compile(code, page.name, "exec"), names)


def test_every_page_with_examples_has_a_test():
    found = {name for name, path in PAGES.items() if "```python" in path.read_text()}
    assert found == {*HERE, *ELSEWHERE}
    for name, test in ELSEWHERE.items():
        assert f"{name}.md" in (ROOT / test).read_text(), test


def test_an_example_that_prints_something_else_is_found(capsys):
    run("print(1 + 1)  # 2\n", {}, capsys)
    with pytest.raises(AssertionError):
        run("print(1 + 1)  # 3\n", {}, capsys)
