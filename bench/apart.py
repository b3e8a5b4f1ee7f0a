"""Work in processes of its own, which may fail, hang or die without taking anything else along."""

import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from bench.providers import reason


class Failed(Exception):
    """Why there is no result, in one line for a table."""


def in_processes(
    work: Callable[..., Any], members: Sequence[tuple[Any, ...]], limit: float | None = None
) -> list[Any]:
    """What `work` returned for each member's arguments: a process each, all at once. The first one
    that fails, or `limit` seconds, end all of them.

    What earlier work leaves in the allocator decides whether temporaries are new pages, which
    changes times by a factor of two. And a kernel that fails leaves nothing on a GPU that others
    could use."""
    context = get_context("spawn")
    deadline = None if limit is None else time.monotonic() + limit
    processes, receivers = [], []
    try:
        for arguments in members:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(sender, work, arguments))
            process.start()
            sender.close()
            processes.append(process)
            receivers.append(receiver)
        results: dict[int, Any] = {}
        while len(results) < len(members):
            waiting = [receivers[k] for k in range(len(members)) if k not in results]
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = wait(waiting, left)
            if not ready:
                raise Failed(f"failed: given up after {limit:.0f} s")
            for receiver in ready:
                k = receivers.index(receiver)
                try:
                    failed, results[k] = receiver.recv()
                except EOFError:
                    processes[k].join()
                    status = processes[k].exitcode
                    raise Failed(f"failed: its process ended with status {status}") from None
                if failed:
                    raise Failed(results[k])
        return [results[k] for k in range(len(members))]
    finally:
        for process in processes:
            process.kill()
            process.join()


def one_by_one(
    work: Callable[..., Iterator[Any]], arguments: tuple[Any, ...], limit: float | None = None
) -> Iterator[Any]:
    """What `work` yields in a process of its own, each as soon as it is there, so that what fails
    later takes none of it along. `limit` seconds are for each."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_each, args=(sender, work, arguments))
    try:
        process.start()
        sender.close()
        while True:
            if not receiver.poll(limit):
                raise Failed(f"failed: given up after {limit:.0f} s")
            failed, result = receiver.recv()
            if failed:
                raise Failed(result)
            yield result
    except EOFError:
        process.join()
        if process.exitcode:
            raise Failed(f"failed: its process ended with status {process.exitcode}") from None
    finally:
        if process.pid is not None:
            process.kill()
            process.join()


def _send(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        outcome = (False, work(*arguments))
    except KeyboardInterrupt:  # the parent was told, too
        return
    except Exception as error:
        outcome = (True, reason(error))
    sender.send(outcome)


def _send_each(
    sender: Connection, work: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]
) -> None:
    try:
        for result in work(*arguments):
            sender.send((False, result))
    except KeyboardInterrupt:  # the parent was told, too
        return
    except Exception as error:
        sender.send((True, reason(error)))
