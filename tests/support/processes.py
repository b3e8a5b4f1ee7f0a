"""Runs tests in real processes, which talk through gloo.

`@on_processes(2, 4)` makes a test run in 2 processes and, as a slow test, in 4. In each of them its
body runs, with the arguments that pytest gave; `torch.distributed` is set up. The processes are
started once for each number of them, and run one test after another. After a failure they are
killed, and the next test starts others: somebody may still wait for a message that never comes.

With FUSEDSTEP_TEST_DEVICE=cuda each process has a GPU of its own, and they talk through NCCL.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

from tests.support.sweeps import sweep
from tests.support.versions import skip_without_fsdp2

# Seconds. A collective that waits longer is an error. A test may take LIMIT, and GRACE longer in
# the other processes than in the first one that failed.
TIMEOUT, LIMIT, GRACE, START = 30, 120, 5, 180
DEVICE = os.environ.get("FUSEDSTEP_TEST_DEVICE", "cpu")
# What tests import first. One process imports it, and all others are forks of that one.
PRELOADED = [
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "tests.support.sharded_models",
]


def on_processes(*sizes: int) -> Callable[[Any], Any]:
    """A test that runs in so many processes. Its arguments must be picklable."""
    ids = [f"{size}-processes" for size in sizes]
    usual_first = sweep(sizes, sizes[:1])
    parameters = pytest.mark.parametrize("processes", usual_first, ids=ids, indirect=True)
    return lambda body: parameters(_in_processes(body))


def on_layouts(*pairs: Any) -> Callable[[Any], Any]:
    """The same for a test that has a layout for each number of processes, in its argument `name`.
    The pairs may come from `sweep`."""
    values = [getattr(pair, "values", pair) for pair in pairs]
    ids = [f"{name}-{size}-processes" for size, name in values]
    parameters = pytest.mark.parametrize(
        ("processes", "name"), pairs, ids=ids, indirect=["processes"]
    )
    return lambda body: parameters(_in_processes(body))


def _in_processes(body: Any) -> Any:
    @functools.wraps(body)
    def run(processes: Processes, **arguments: Any) -> None:
        failed = processes.run(body.__module__, body.__qualname__, arguments)
        skip_without_fsdp2(failed)
        if failed:
            pytest.fail(failed, pytrace=False)

    own = inspect.signature(body).parameters.values()
    first = inspect.Parameter("processes", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([first, *own])  # type: ignore[attr-defined]
    run.body = body  # type: ignore[attr-defined]
    return run


class Processes:
    """Some processes, each with a rank in one gloo group."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.workers: list[Any] = []
        self.ends: list[Connection] = []

    def run(self, module: str, name: str, arguments: dict[str, Any]) -> str:
        """Runs a test in all processes. Says what failed in which of them; empty if nothing did."""
        if not self.workers:
            self._start()
            failed = self._answers(START)
            if any(failed):
                self.close()
                return _told(failed)
        for end in self.ends:
            end.send((module, name, arguments))
        failed = self._answers(LIMIT)
        if any(failed):
            self.close()
        return _told(failed)

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.folder = tempfile.TemporaryDirectory()
        for rank in range(self.size):
            own, its = context.Pipe()
            worker = context.Process(
                target=_work, args=(rank, self.size, f"{self.folder.name}/group", its), daemon=True
            )
            worker.start()
            its.close()
            self.workers.append(worker)
            self.ends.append(own)

    def _answers(self, limit: float) -> list[str]:
        """What failed in each process. Whoever does not answer in time is said to wait."""
        last = time.monotonic() + limit
        answers: dict[Connection, str] = {}
        while len(answers) < self.size and (left := last - time.monotonic()) > 0:
            for end in wait([end for end in self.ends if end not in answers], left):
                assert isinstance(end, Connection)
                try:
                    answers[end] = end.recv()
                except EOFError:
                    answers[end] = "the process ended"
                if answers[end]:
                    last = min(last, time.monotonic() + GRACE)
        return [answers.get(end, "still waited for others, or ran") for end in self.ends]

    def close(self) -> None:
        if not self.workers:
            return
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.join()
        for end in self.ends:
            end.close()
        self.workers, self.ends = [], []
        self.folder.cleanup()


def _told(failed: list[str]) -> str:
    """Each failure once, with the ranks that had it."""
    ranks: dict[str, list[int]] = {}
    for rank, text in enumerate(failed):
        if text:
            ranks.setdefault(text, []).append(rank)
    return "\n".join(f"rank {', '.join(map(str, own))}: {text}" for text, own in ranks.items())


def _work(rank: int, size: int, file: str, end: Connection) -> None:
    """The life of one process."""
    os.environ.update(OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    failed = _failure(lambda: _join(rank, size, file))
    while True:
        end.send(failed)
        try:
            module, name, arguments = end.recv()
        except EOFError:
            return
        failed = _failure(lambda: _call(module, name, arguments))  # noqa: B023 (called at once)


def _join(rank: int, size: int, file: str) -> None:
    import datetime
    import logging
    import warnings

    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if DEVICE == "cuda" else "gloo",
        init_method=f"file://{file}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )


def _call(module: str, name: str, arguments: dict[str, Any]) -> None:
    getattr(importlib.import_module(module), name).body(**arguments)


def _failure(call: Callable[[], None]) -> str:
    try:
        call()
    except BaseException:
        return traceback.format_exc().strip()
    return ""
