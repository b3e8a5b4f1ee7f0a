"""The C++ watch reads the same facts from a tensor's memory as torch reports, or it is not used."""

import pytest
import torch

import fusedstep.optim
from fusedstep import native
from fusedstep.plan import watch
from fusedstep.plan.layouts import Layout, Layouts


# torch's table for DLPack, and our function of Python that older versions of torch need.
@pytest.fixture(autouse=True, params=watch.SOURCES, ids=["DLPack", "Python"][-len(watch.SOURCES) :])
def source(request):
    """What C++ asks about tensors."""
    assert native.module.learn_to_watch(request.param, watch.samples())
    yield request.param
    assert native.module.learn_to_watch(watch.SOURCES[0], watch.samples())


def test_its_flags_are_those_of_torch():
    """The watch reads the flags from one word: the keys that torch dispatches on."""
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
    """A lazy clone shares memory until one of the two is written. A step must not write both."""
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
    """Each gradient has another address. The watch does not need memory for each."""
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


def gone(param):
    param.grad = None


def back(param):
    param.grad = torch.ones_like(param)


def back_in_other_strides(param):
    param.grad = torch.ones_like(param).mT.contiguous().mT


def back_negated(param):
    param.grad = torch._neg_view(torch.ones_like(param))


def back_off_its_alignment(param):
    param.grad = torch.ones(param.numel() + 1)[1:].view(param.shape)


KINDS = [watch.PythonWatch, watch.watch]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=["python", "native"])


class Watched:
    """Three parameters, with one cell for each except the middle one."""

    def __init__(self, kind, without=(), earlier=()):
        self.params = [torch.nn.Parameter(torch.zeros(4, 3)) for _ in range(3)]
        give(self.params)
        for index in without:
            self.params[index].grad = None
        self.cells = torch.full((3,), -1)
        addresses = [self.cells[k].data_ptr() if k != 1 else 0 for k in range(3)]
        self.watch = kind([self.params], {}, (), addresses, earlier)
        self.kept = [param.grad for param in self.params]

    def check(self):
        return self.watch.check([self.params], {})

    def change(self, index, how):
        self.kept.append(self.params[index].grad)  # so that the next one gets other memory
        how(self.params[index])

    def address(self, index):
        return self.params[index].grad.data_ptr()


@each_kind
def test_gradients_come_and_go(kind):
    watched = Watched(kind)
    assert watched.watch.present() == b"\1\1\1"
    assert watched.check() == 0
    for index in (0, 1):
        watched.change(index, gone)
    assert watched.check() == watch.CAME_OR_WENT
    assert watched.watch.present() == b"\0\0\1"
    assert watched.cells.tolist() == [0, -1, -1]
    assert watched.check() == 0
    watched.change(0, back)
    watched.change(2, back)
    assert watched.check() == watch.CAME_OR_WENT + 1  # and another one moved
    assert watched.watch.present() == b"\1\0\1"
    assert watched.cells.tolist() == [watched.address(0), -1, watched.address(2)]
    watched.change(1, back)
    assert watched.check() == watch.CAME_OR_WENT
    assert watched.watch.present() == b"\1\1\1"


@each_kind
def test_a_gradient_may_come_back_where_it_was(kind):
    watched = Watched(kind)
    grad = watched.params[0].grad
    watched.params[0].grad = None
    assert watched.check() == watch.CAME_OR_WENT
    watched.params[0].grad = grad
    assert watched.check() == watch.CAME_OR_WENT
    assert watched.cells[0] == grad.data_ptr()


@each_kind
@pytest.mark.parametrize("how", [back_in_other_strides, back_negated, back_off_its_alignment])
def test_a_gradient_that_comes_back_otherwise_needs_a_new_plan(kind, how):
    watched = Watched(kind)
    watched.change(0, gone)
    assert watched.check() == watch.CAME_OR_WENT
    watched.change(0, how)
    assert watched.check() == -1
    watched.change(0, back)
    assert watched.check() == -1  # again, since cells may have been written


@each_kind
def test_a_gradient_that_was_never_seen_needs_a_new_plan(kind):
    watched = Watched(kind, without=[0])
    assert watched.watch.present() == b"\0\1\1"
    assert watched.check() == 0
    watched.change(0, back)
    assert watched.check() == -1


def a_layout(dtype=torch.float32, shape=(4, 3), strides=(3, 1), negated=False):
    return Layout(dtype, torch.device("cpu"), torch.Size(shape), strides, negated)


def earlier(change=None, strides=(3, 1)):
    return [a_layout(strides=strides, **(change or {})), None, None]


@each_kind
@pytest.mark.parametrize(
    ("layouts", "how", "result"),
    [
        (earlier(), back, watch.CAME_OR_WENT),
        (earlier(), back_in_other_strides, -1),
        (earlier(), back_negated, -1),
        (earlier(), back_off_its_alignment, -1),
        (earlier(strides=(1, 4)), back_in_other_strides, watch.CAME_OR_WENT),
        (earlier({"negated": True}), back_negated, watch.CAME_OR_WENT),
        (earlier({"negated": True}), back, -1),
        (earlier({"dtype": torch.bfloat16}), back, -1),
        (earlier({"dtype": torch.float16}), back, -1),
        (earlier({"dtype": torch.float64}), back, -1),
    ],
)
def test_a_layout_of_before_is_known(kind, layouts, how, result):
    watched = Watched(kind, without=[0], earlier=layouts)
    assert watched.check() == 0
    watched.change(0, how)
    assert watched.check() == result
    if result > 0:
        assert watched.cells[0] == watched.address(0)


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_layouts_of_every_dtype_are_known(kind, dtype):
    param = torch.nn.Parameter(torch.zeros(2, 3, dtype=dtype))
    layout = Layouts().of(torch.zeros_like(param))
    cell = torch.zeros(1, dtype=torch.int64)
    own = kind([[param]], {}, (), [cell.data_ptr()], [layout])
    back(param)
    assert own.check([[param]], {}) == watch.CAME_OR_WENT
    assert cell == param.grad.data_ptr()


@each_kind
def test_an_empty_gradient_comes_and_goes(kind):
    param = torch.nn.Parameter(torch.zeros(0, 3))
    for layouts in ([], [a_layout(shape=(0, 3))]):
        param.grad = None if layouts else torch.zeros(0, 3)
        own = kind([[param]], {}, (), [0], layouts)
        for _ in range(2):
            was = param.grad is None
            param.grad = torch.zeros(0, 3) if was else None
            assert own.check([[param]], {}) == watch.CAME_OR_WENT
            assert own.present() == bytes([was])


def test_the_two_watches_have_one_number_for_it():
    assert native.module.CAME_OR_WENT == watch.CAME_OR_WENT
