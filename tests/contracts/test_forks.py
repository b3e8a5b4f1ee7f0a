"""A forked child has none of its parent's threads, and can still take steps."""

import os
import pickle
import select
import signal
import subprocess
import sys

import pytest
import torch

from tests.support.cases import CASES, assert_same, each, make_params, set_grads

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

SECONDS = 60  # a child that waits for its parent's threads would wait for ever
SOME = [case for case in CASES if case.name in ("adamw", "hf-adafactor-momentum")]


def in_child(work):
    """Runs `work` in a forked child and returns its result. Fails if the child hangs."""
    there, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(2 * SECONDS)
        try:
            os.write(here, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(here)
    try:
        with open(there, "rb") as answer:
            assert select.select([answer], [], [], SECONDS)[0], "the child hangs"
            return pickle.loads(answer.read())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def _two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def stepped(case, rounds):
    params = make_params([(2000,)] * 40 + [(64, 64)] * 20)
    optimizer = case.make(params, backend="cpu")
    for k in range(rounds):
        set_grads(params, k)
        optimizer.step()
    return optimizer, params


def next_step(optimizer, params):
    set_grads(params, 7)
    optimizer.step()
    return pickle.dumps([p.detach().numpy() for p in params])


@each(SOME)
@pytest.mark.usefixtures("_two_threads")
def test_a_child_steps_as_its_parent(case):
    optimizer, params = stepped(case, 2)
    children = [in_child(lambda: next_step(optimizer, params)) for _ in range(3)]
    of_a_grandchild = in_child(lambda: in_child(lambda: next_step(optimizer, params)))
    expected = next_step(optimizer, params)
    assert children == [expected] * 3
    assert of_a_grandchild == expected
    assert_same(*stepped(case, 2), *stepped(case, 2))  # the parent still has its threads


def run_worker(params, steps):
    optimizer = SOME[0].make(params, backend="cpu")
    for k in range(steps):
        set_grads(params, k)
        optimizer.step()


@pytest.mark.usefixtures("_two_threads")
def test_workers_share_parameters():
    """Hogwild: forked workers update the same memory in any order."""
    optimizer, params = stepped(SOME[0], 1)
    for param in params:
        param.share_memory_()
    before = [param.detach().clone() for param in params]
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=run_worker, args=(params, 5)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS)
    hung = [worker for worker in workers if worker.is_alive()]
    for worker in hung:
        worker.kill()
    assert not hung
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    for param, old in zip(params, before, strict=True):
        assert param.isfinite().all()
        assert not torch.equal(param, old)
    set_grads(params, 9)
    optimizer.step()


LOADED_LATE = """
import os, signal, sys
import torch
torch.set_num_threads(2)
torch.ones(1 << 20).add_(1.0)  # starts the threads of torch's pool
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    import fusedstep.optim
    params = [torch.nn.Parameter(torch.ones(2000)) for _ in range(50)]
    for param in params:
        param.grad = torch.ones_like(param)
    fusedstep.optim.AdamW(params, lr=0.1, backend="cpu").step()
    assert all(bool((param < 1.0).all()) for param in params)
    os._exit(17)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_may_be_the_first_to_load_the_package():
    assert subprocess.run([sys.executable, "-c", LOADED_LATE]).returncode == 17
