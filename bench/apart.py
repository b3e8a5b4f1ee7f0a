"""Work in processes of its own, so that it can fail, hang or die alone."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from bench.providers import reason


class Failed(Exception):
    """Why there is no result, in one line for a table."""


def in_processes(
    work: Callable[..., Any], members: Sequence[tuple[Any, ...]], limit: float | None = None
) -> list[Any]:
    """Calls `work` with each member's arguments, all at once, in one process each. If one fails, or
    after `limit` seconds, all of them end.

    A process of its own matters for two reasons. Memory that earlier work left in the allocator
    spares temporaries new pages, which changes times by a factor of two. And after a kernel has
    failed on a GPU, nothing else runs in that process.
    """
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
            waiting = {k: receivers[k] for k in range(len(members)) if k not in results}
            seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = wait(list(waiting.values()), seconds)
            if not ready:
                raise Failed(f"failed: given up after {limit:.0f} s")
            for k in [k for k, receiver in waiting.items() if receiver in ready]:
                try:
                    failed, results[k] = receivers[k].recv()
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
) -> Generator[Any, None, None]:
    """Yields what `work` yields in one process, as soon as it arrives. So a later failure loses no
    earlier result. Each result may take `limit` seconds."""
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
    except KeyboardInterrupt:  # the parent gets it too, and reports it
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
    except KeyboardInterrupt:  # the parent gets it too, and reports it
        return
    except Exception as error:
        sender.send((True, reason(error)))
