"""The examples of docs/frameworks.md run, and train with ours."""

import os
import re
import traceback
from importlib import import_module
from pathlib import Path

import pytest
import torch

from bench.apart import in_processes
from tests.support.page_examples import absent, examples
from tests.support.versions import skip_without_fsdp2

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "frameworks.md"
LIMIT = 240  # seconds for all examples together
# Packages that the extra `test` has not, and the command that installs them.
ELSEWHERE = {
    "timm": "make test-frameworks",
    "trl": "make test-frameworks",
    "datasets": "make test-frameworks",
    "peft": "make test-frameworks",
    "accmt": "make test-accmt",
}


FIRST, *REST = BLOCKS = examples(PAGE)


def trained(names):
    """The optimizer that an example trained with, without a framework's wrapper."""
    trainer = names.get("trainer")
    found = names.get("optimizer") or getattr(trainer, "optimizer", None)
    if found is None:
        found = getattr(trainer, "_optimizer", None) or trainer.optimizers[0]
    while not hasattr(found, "grad_norm") and hasattr(found, "optimizer"):
        found = found.optimizer
    return found


def run(folder):
    """Runs all examples in one process. Returns what failed, by heading."""
    os.chdir(folder)
    os.environ["ACCMT_CPU"] = "1"  # read at import
    torch.set_num_threads(1)
    import fusedstep
    from fusedstep.optim.base import FusedOptimizer

    failed = {}
    for heading in REST:
        if absent(BLOCKS[heading]):
            continue
        names = {}
        try:
            exec(compile(BLOCKS[FIRST], FIRST, "exec"), names)
            exec(compile(BLOCKS[heading], heading, "exec"), names)
            own = trained(names)
            assert isinstance(own, FusedOptimizer), type(own)
            assert own.state, "it made no step"
        except Exception:
            failed[heading] = traceback.format_exc()
        finally:
            fusedstep.unregister()
    return failed


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    return in_processes(run, [(str(tmp_path_factory.mktemp("docs")),)], LIMIT)[0]


@pytest.mark.parametrize("heading", REST)
def test_an_example_of_the_page_trains_with_ours(failures, heading):
    if missing := absent(BLOCKS[heading]):
        assert set(missing) <= set(ELSEWHERE), f"not installed: {missing}"
        pytest.skip(f"not installed, see {ELSEWHERE[missing[0]]}: {', '.join(missing)}")
    skip_without_fsdp2(failures.get(heading, ""))
    assert heading not in failures, failures[heading]


def test_the_links_of_the_page_lead_somewhere():
    text = PAGE.read_text()
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, place = link.partition("#")
        if path:
            assert (PAGE.parent / path).exists(), link
        else:
            assert place in headings, link


def test_other_pages_link_to_it():
    for page in ("README.md", "CONTRIBUTING.md"):
        assert "docs/frameworks.md" in (ROOT / page).read_text(), page


def test_its_table_names_what_the_trainer_gets(tmp_path):
    """The rows with a name in `optim=`."""
    from transformers import TrainingArguments

    import fusedstep

    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| `(fusedstep\.\w+)\.(\w+)` \|", PAGE.read_text(), re.M
    )
    assert len(rows) == 2
    for names, package, kind in rows:
        for name in re.findall(r"`(\w+)`", names):
            args = TrainingArguments(str(tmp_path), optim=name, use_cpu=True)
            own, _ = fusedstep.hf.optimizer_cls_and_kwargs(args)
            assert own is getattr(import_module(package), kind)
