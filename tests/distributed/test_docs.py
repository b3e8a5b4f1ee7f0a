"""The examples of docs/distributed.md run, on processes that talk by gloo."""

import os
import re
import socket
import traceback
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench.apart import in_processes
from tests.support.page_examples import absent, examples
from tests.support.versions import skip_without_fsdp2
from tests.support.zero import prepare

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "distributed.md"
LIMIT = 240  # seconds for all examples together


FIRST, *REST = BLOCKS = examples(PAGE)


def run(rank, processes, port, folder):
    """Runs all examples in one process. Returns what failed, by heading."""
    os.chdir(folder)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    failed = {}
    shared = {}
    exec(compile(BLOCKS[FIRST], FIRST, "exec"), shared)
    if find_spec("deepspeed"):
        prepare()
    for heading in REST:
        if not absent(BLOCKS[heading]):
            try:
                exec(compile(BLOCKS[heading], heading, "exec"), dict(shared))
            except Exception:
                failed[heading] = traceback.format_exc()
    torch.distributed.destroy_process_group()
    return failed


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def failures(request, tmp_path_factory):
    """What failed in each process."""
    folder, port = tmp_path_factory.mktemp("docs"), free_port()
    members = [(rank, request.param, port, str(folder)) for rank in range(request.param)]
    return in_processes(run, members, LIMIT)


@pytest.mark.parametrize("heading", REST)
def test_an_example_of_the_page_runs(failures, heading):
    if missing := absent(BLOCKS[heading]):
        pytest.skip(f"not installed: {', '.join(missing)}")
    failed = [own[heading] for own in failures if heading in own]
    skip_without_fsdp2("".join(failed))
    assert failed == []


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
        assert "docs/distributed.md" in (ROOT / page).read_text(), page
