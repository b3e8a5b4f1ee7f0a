"""The C++ watch learns on samples where tensors keep what it reads. A false sample is refused."""

import pytest
import torch

from fusedstep import native
from fusedstep.plan import watch


@pytest.fixture(params=watch.SOURCES, ids=["DLPack", "Python"][-len(watch.SOURCES) :])
def learns(request):
    """Whether C++ learns from these samples, asking torch's table for DLPack, or our function of
    Python that older versions of torch need."""
    yield lambda samples: native.module.learn_to_watch(request.param, samples)
    assert native.module.learn_to_watch(watch.SOURCES[0], watch.samples())


def changed(samples, index, place, value):
    return [
        (*s[:place], value(s[place]), *s[place + 1 :]) if k == index else s
        for k, s in enumerate(samples)
    ]


def test_it_is_learned_from_the_samples(learns):
    assert learns(watch.samples())
    assert native.module.can_watch()


@pytest.mark.parametrize("index", [0, 17, -1])
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (1, lambda body: body + 8),
        (2, lambda storage: storage + 8),
        (3, lambda data: data + 8),
        (4, lambda negated: not negated),
        (5, lambda conjugated: not conjugated),
        (6, lambda lazy: not lazy),
        (7, lambda sizes: (*sizes, 1)),
        (8, lambda strides: tuple(stride + 1 for stride in (*strides, 1))),
    ],
    ids=["body", "storage", "data", "negated", "conjugated", "lazy", "sizes", "strides"],
)
def test_a_false_sample_is_refused_and_changes_nothing(index, place, value, learns):
    samples = watch.samples()
    assert not learns(changed(samples, range(len(samples))[index], place, value))
    assert native.module.can_watch()


def test_samples_that_look_alike_and_are_not_are_refused(learns):
    twin = (torch.zeros(4), torch.zeros(4))
    rows = [
        (
            *(t, t._cdata, t.untyped_storage()._cdata, t.data_ptr(), False, False, False),
            *((4,), (1,), 10_000 + k),
        )
        for k, t in enumerate(twin)
    ]
    assert not learns(watch.samples() + rows)
    assert learns(watch.samples() + rows[:1] + [(*rows[1][:-1], rows[0][-1])])


def test_a_false_answer_about_a_late_sample_is_refused():
    """Also after the sample that has no memory."""

    def wrong(tensor):
        facts = watch.dlpack_facts(tensor)
        return facts if tensor is not samples[-4][0] else (facts[0] + 4, *facts[1:])

    samples = watch.samples()
    assert not native.module.learn_to_watch(wrong, samples)
    assert not native.module.learn_to_watch(lambda tensor: (1, 2), samples)


def test_nothing_but_samples_is_refused(learns):
    assert not learns([])
    for nothing in (None, 3, object()):
        assert not native.module.learn_to_watch(nothing, watch.samples())
