"""What the watch in C++ reads of a tensor's memory is what torch says of it, or it is not used."""

import pytest
import torch

import fusedstep.optim
from fusedstep import native, watch

pytestmark = pytest.mark.skipif(
    watch.EXCHANGE is None, reason="there is only the watch in Python: the other needs torch 2.10"
)


def learns(samples):
    return native.module.learn_to_watch(watch.EXCHANGE, samples)


def changed(samples, index, place, value):
    return [
        (*s[:place], value(s[place]), *s[place + 1 :]) if k == index else s
        for k, s in enumerate(samples)
    ]


def test_it_is_learned_from_the_samples():
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
    ],
    ids=["body", "storage", "data", "negated", "conjugated", "lazy"],
)
def test_a_false_sample_is_refused_and_changes_nothing(index, place, value):
    samples = watch.samples()
    assert not learns(changed(samples, range(len(samples))[index], place, value))
    assert native.module.can_watch()


def test_samples_that_look_alike_and_are_not_are_refused():
    twin = (torch.zeros(4), torch.zeros(4))
    rows = [
        (t, t._cdata, t.untyped_storage()._cdata, t.data_ptr(), False, False, False, 1, 10_000 + k)
        for k, t in enumerate(twin)
    ]
    assert not learns(watch.samples() + rows)
    assert learns(watch.samples() + rows[:1] + [(*rows[1][:-1], rows[0][-1])])


def test_nothing_but_samples_is_refused():
    assert not learns([])


def test_its_flags_are_those_of_torch():
    """The one word that it reads flags from is the set of keys that torch dispatches on."""
    negative = torch._C.DispatchKeySet(torch._C.DispatchKey.Negative).raw_repr()
    for sample in watch.samples():
        keys = torch._C._dispatch_keys(sample[0]).raw_repr()
        assert bool(keys & negative) == sample[4] == sample[0].is_neg()


def opt_and_step(*tensors):
    params = [torch.nn.Parameter(t) for t in tensors]
    opt = fusedstep.optim.AdamW(params, lr=0.1)
    give(params)
    opt.step()
    return opt, params


def give(params):
    for param in params:
        param.grad = torch.ones_like(param)


def test_what_is_copied_when_it_is_written_is_copied():
    """A step writes to a parameter, not to what shares its memory until one of both is written."""
    opt, (param,) = opt_and_step(torch.ones(4))
    for _ in range(2):
        shared = torch._lazy_clone(param.detach())
        before = param.detach().clone()
        give([param])
        opt.step()
        assert torch.equal(shared, before)
        assert not torch.equal(param, before)


def test_conjugated_parameters_and_states_are_refused_as_torch_refuses_them():
    for what in ("parameter", "state"):
        opt, (param,) = opt_and_step(torch.ones(4, dtype=torch.complex64))
        target = param if what == "parameter" else opt.state[param]["exp_avg"]
        target.data = target.data.conj()
        before = param.detach().clone()
        give([param])
        for _ in range(2):
            with pytest.raises(RuntimeError, match="conjugated"):
                opt.step()
            assert torch.equal(param.detach(), before)


def test_a_negated_view_of_the_same_memory_is_seen():
    for what in ("parameter", "state"):
        results = []
        for kind in (fusedstep.optim.AdamW, torch.optim.AdamW):
            numbers = torch.complex(torch.ones(4), torch.arange(1.0, 5.0))
            param = torch.nn.Parameter(numbers.imag)
            opt = kind([param], lr=0.1)
            give([param])
            opt.step()
            if what == "parameter":
                param.data = numbers.conj().imag
            else:
                opt.state[param]["exp_avg"].data = torch._neg_view(opt.state[param]["exp_avg"].data)
            give([param])
            opt.step()
            results.append(param.detach().resolve_neg().clone())
        torch.testing.assert_close(*results)


def test_gradients_that_move_within_one_buffer_are_followed():
    """Each in a place of its own: no row of words is kept for each."""
    param = torch.nn.Parameter(torch.zeros(4))
    opt = fusedstep.optim.AdamW([param], lr=0.1)
    buffer = torch.arange(4096.0)
    for k in range(1000):
        param.grad = buffer[4 * k : 4 * k + 4]
        opt.step()
        if k == 0:
            plan = opt._plan
        (row,) = opt._plan.buckets[0].table.tolist()
        assert row[1] == buffer.data_ptr() + 16 * k
    assert opt._plan is plan
