"""Many small tensors are copied at once; neighbours in a message are one copy."""

import pytest
import torch

import fusedstep.optim
from fusedstep import native
from fusedstep.plan.copies import Copies, joined
from tests.support.exchange import FakeProcesses, share


def pairs():
    """Tensors of many kinds, each with a place of its shape."""
    numbers = torch.arange(1.0, 25.0).view(4, 6)
    sources = [
        numbers.clone(), numbers.to(torch.bfloat16), numbers.double()[:, 2], numbers.clone().t(),
        numbers[1:3], torch.tensor(7.0), torch.empty(0, 3),
    ]  # fmt: skip
    places = [torch.zeros(own.shape, dtype=own.dtype) for own in sources]
    places[0] = torch.zeros(6, 4).t()
    return sources, places


@pytest.mark.parametrize("with_native", [True, False])
def test_copies_go_there_and_back(with_native, monkeypatch):
    if not with_native:
        monkeypatch.setattr(native, "module", None)
    sources, places = pairs()
    expected = [own.clone() for own in sources]
    copies = Copies(sources, places)
    assert len(copies) == len(sources) - 1  # one is empty
    copies.there()
    for place, own in zip(places, expected, strict=True):
        assert torch.equal(place, own)
    for own in sources:
        own.zero_()
    copies.back()
    for source, own in zip(sources, expected, strict=True):
        assert torch.equal(source, own)


def test_nothing_to_copy_is_nothing():
    copies = Copies([], [])
    copies.there()
    copies.back()
    assert len(copies) == 0


def test_runs_are_joined_where_both_sides_go_on():
    assert joined([]) == []
    assert joined([(0, 3, 10), (3, 5, 13), (5, 9, 15)]) == [(0, 9, 10)]
    assert joined([(0, 3, 10), (4, 5, 13)]) == [(0, 3, 10), (4, 5, 13)]
    assert joined([(0, 3, 10), (3, 5, 14)]) == [(0, 3, 10), (3, 5, 14)]
    assert joined([(3, 5, 10), (0, 3, 12), (3, 4, 15)]) == [(3, 5, 10), (0, 4, 12)]


def test_a_message_takes_one_copy_for_each_bucket():
    """Weights and biases alternate, and lie in a bucket each."""
    params = [torch.nn.Parameter(torch.ones(shape)) for _ in range(9) for shape in ((4, 3), (4,))]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = fusedstep.optim.Adafactor(params)
    share(optimizer, FakeProcesses(2), parts=2)
    optimizer.step()
    plan = optimizer._plan
    assert len(plan.buckets) == 2
    assert [len(own.copies) for own in plan.exchange._packed] == [3, 1]  # vectors: p^2 and u^2
