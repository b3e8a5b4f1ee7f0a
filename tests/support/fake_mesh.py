"""A mesh of two processes of which one is real: both hold the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch.distributed as dist


@contextmanager
def fake_mesh() -> Iterator[Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def gather(gathered: list[Any], own: Any, group: Any = None) -> None:
        gathered[:] = [own] * len(gathered)

    def add_up(numbers: Any, group: Any = None, async_op: bool = False) -> Any:
        numbers *= 2
        return mock.Mock()

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with mock.patch.multiple(dist, all_gather_object=gather, all_reduce=add_up):
            yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()
