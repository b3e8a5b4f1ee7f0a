"""Processes that run tests: what failed is told, and nobody waits for ever."""

import time

import pytest
import torch.distributed as dist

from tests.support import processes as support
from tests.support.processes import Processes, on_processes


def failing(rank):
    if dist.get_rank() == rank:
        raise ValueError(f"planted on rank {rank}")


def waiting(rank):
    if dist.get_rank() != rank:
        dist.barrier()
    else:
        raise ValueError("planted, and others wait")


def sleeping():
    time.sleep(100)


for body in (failing, waiting, sleeping):
    body.body = body


@pytest.fixture(scope="module")
def two():
    own = Processes(2)
    yield own
    own.close()


@on_processes(2, 4)
def test_each_process_has_a_rank(tmp_path):
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (dist.get_rank(), tmp_path))
    assert ranks == [(rank, tmp_path) for rank in range(dist.get_world_size())]


def test_an_error_is_told_with_its_rank_and_line(two):
    told = two.run(__name__, "failing", {"rank": 1})
    assert told.startswith("rank 1: Traceback") and "raise ValueError" in told
    assert told.endswith("planted on rank 1") and "rank 0" not in told


def test_whoever_waits_for_a_process_that_failed_is_ended(two, monkeypatch):
    monkeypatch.setattr(support, "GRACE", 1)
    told = two.run(__name__, "waiting", {"rank": 0})
    assert "rank 0: Traceback" in told and "rank 1: still waited" in told
    assert two.run(__name__, "failing", {"rank": 2}) == ""


def test_a_test_that_never_ends_is_ended(two, monkeypatch):
    monkeypatch.setattr(support, "LIMIT", 1)
    assert two.run(__name__, "sleeping", {}) == "rank 0, 1: still waited for others, or ran"
