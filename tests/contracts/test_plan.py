"""The plan and its watch: a step with a cached plan equals one with a new plan, whatever happened
in between."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedstep.hf
import fusedstep.optim
from fusedstep import native
from fusedstep.backends.cpu import CpuLauncher
from fusedstep.plan import watch
from tests.support.cases import DTYPES, make_params, same_bits, set_grads
from tests.support.events import (
    EVENTS,
    MOVES,
    OPTIONS,
    SHAPES,
    World,
    adamw,
    all_grads_move,
    assert_same_worlds,
    data_of_other_shape,
    hf_adafactor,
    list_of_params_grows,
    nothing,
)
from tests.support.rule_cases import once_a_kind

some_params = st.lists(
    st.tuples(
        st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 2)
    ),
    min_size=3,
    max_size=6,
)  # fmt: skip
some_events = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 7)), min_size=1, max_size=4
)


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(worlds, rounds):
    """Runs the same events in two worlds. The second one drops its plan before every step."""
    for events, new_grads in rounds:
        for world in worlds:
            for event, k in events:
                event(world, k % len(world.params))
            if new_grads:
                world.new_grads()
        cached, fresh = worlds
        fresh.opt._plan = None
        results = cached.step(), fresh.step()
        assert results[0] == results[1]
        assert_same_worlds(cached, fresh)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@settings(
    max_examples=80, deadline=None, derandomize=True, database=None, report_multiple_bugs=False
)
@given(
    make=st.sampled_from(list(OPTIONS)),
    params=some_params,
    rounds=st.lists(st.tuples(some_events, st.booleans()), min_size=3, max_size=5),
)
def test_a_cached_plan_steps_as_a_new_one(backend, make, params, rounds):
    worlds = [World(make, params, backend) for _ in range(2)]
    run(worlds, [([], True), ([], True), *rounds])


ALL_KINDS = [(shape, torch.float32, False, k % 3) for k, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("make", OPTIONS)
@pytest.mark.parametrize("event", EVENTS)
def test_a_cached_plan_steps_as_a_new_one_after_each_event(event, make):
    worlds = [World(make, ALL_KINDS, "cpu") for _ in range(2)]
    run(worlds, [([], True), ([], True), ([(event, 5)], False), ([], False), ([], True)])


@pytest.mark.parametrize("make", OPTIONS)
@pytest.mark.parametrize("event", MOVES)
def test_a_plan_is_made_anew_after_each_move(event, make):
    world = World(make, ALL_KINDS, "cpu")
    world.new_grads()
    world.step()
    plan = world.opt._plan
    world.kept.append([param.data for param in world.params])
    event(world, 5)
    world.kept.append(world.step())
    refused = event is data_of_other_shape
    assert (world.opt._plan is plan) == refused
    assert (world.kept[-1] is not None) == refused


@pytest.mark.parametrize("make", OPTIONS)
def test_nothing_is_made_anew_when_only_gradients_move(make):
    world = World(make, ALL_KINDS, "cpu")
    world.new_grads()
    world.step()
    plan, tables = world.opt._plan, [bucket.table for bucket in world.opt._plan.buckets]
    for how in range(6):
        if how % 3 == 1:
            world.new_grads()
        elif how % 3 == 2:
            world.opt.zero_grad(set_to_none=True)
            world.new_grads()
        assert world.step() is None
        assert world.opt._plan is plan
        assert all(a is b.table for a, b in zip(tables, plan.buckets, strict=True))
        assert_tables_hold_addresses(plan)


def assert_tables_hold_addresses(plan):
    for bucket in plan.buckets:
        assert not bucket.staged
        for member, row in zip(bucket.members, bucket.table.tolist(), strict=True):
            tensors = [
                member.param,
                member.param.grad,
                *(member.state[k] for k in member.state_keys),
            ]
            assert row[: len(tensors)] == [tensor.data_ptr() for tensor in tensors]
            sizes = (
                list(member.param.shape[-2:]) if bucket.kind == "matrix" else [member.param.numel()]
            )
            assert row[-len(sizes) :] == sizes


@once_a_kind
def test_every_parameter_with_elements_is_in_one_uniform_bucket(case):
    params = [p for dtype in DTYPES for p in make_params(SHAPES, dtype)]
    optimizer = case.make([{"params": params[::2]}, {"params": params[1::2], "lr": 0.1}])
    if "relative_step" in optimizer.defaults:
        optimizer.param_groups[1]["relative_step"] = False
    set_grads(params, 0)
    params[3].grad = None
    optimizer.step()
    buckets = optimizer._plan.buckets
    held = [id(member.param) for bucket in buckets for member in bucket.members]
    assert sorted(held) == sorted(id(p) for p in params if p.numel() and p.grad is not None)
    assert_tables_hold_addresses(optimizer._plan)
    kinds = set()
    for bucket in buckets:
        kinds.add((bucket.rule.name, bucket.kind, bucket.device, bucket.dtypes))
        for member in bucket.members:
            states = [member.state[key] for key in member.state_keys]
            tensors = [member.param, member.param.grad, *states]
            assert tuple(tensor.dtype for tensor in tensors) == bucket.dtypes
            assert {tensor.device for tensor in tensors} == {bucket.device}
            assert (member.rule, member.kind) == (bucket.rule.name, bucket.kind)
    assert len(kinds) == len(buckets) == len(DTYPES) * (2 if buckets[0].rule.factored else 1)


def watches(world):
    """Both watches on one optimizer, each with its own cells."""
    lists, plan = world.opt._lists(), world.opt._plan
    keys = tuple(sorted({key for member in plan.members for key in member.state_keys}))
    made = []
    for kind in (watch.PythonWatch, watch.watch):
        cells = torch.zeros(len(world.params), dtype=torch.int64)
        addresses = [cells[k].data_ptr() if k % 2 else 0 for k in range(len(cells))]
        made.append((kind(lists, world.opt.state, keys, addresses), cells))
    assert type(made[1][0]) is native.module.Watch
    return made


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
    reason="there is only the watch in Python: the one in C++ needs torch 2.10",
)
@pytest.mark.parametrize("make", [adamw, hf_adafactor])
@pytest.mark.parametrize("event", [*EVENTS, nothing, all_grads_move, list_of_params_grows])
def test_the_two_watches_agree_on_every_event(event, make):
    for k in range(len(SHAPES)):
        world = World(make, ALL_KINDS, "cpu")
        world.new_grads()
        world.step()
        world.kept += [[param.grad for param in world.params], [p.data for p in world.params]]
        (plain, own_cells), (fast, cells) = watches(world)
        event(world, k)
        lists = world.opt._lists()
        result = plain.check(lists, world.opt.state)
        assert fast.check(lists, world.opt.state) == result
        if result >= 0:
            assert torch.equal(own_cells, cells)
            assert int((cells != 0).sum()) == result % watch.CAME_OR_WENT
            assert fast.present() == plain.present()
        if event is all_grads_move:
            assert result == sum(bool(p.numel()) for p in world.params[1::2])


def test_parameters_that_fell_behind_have_rows_of_their_own():
    params = make_params([(4,), (5,), (6,), (7,)])
    opt = fusedstep.optim.AdamW([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}])
    for step in range(3):
        set_grads(params, step)
        if step == 1:
            params[1].grad = params[2].grad = None
        opt.step()
    (bucket,) = opt._plan.buckets
    keys = [bucket.rows.keys[row] for row in bucket.rows.scalar_row_of.tolist()]
    assert keys == [(0, 3.0), (0, 2.0), (1, 2.0), (1, 3.0)]
    assert len(bucket.rows.keys) == 4
    for p in params:
        opt.state[p]["step"].fill_(9.0)
    opt.step()
    assert opt._plan.buckets[0].rows.keys == [(0, 10.0), (1, 10.0)]


@once_a_kind
def test_many_groups_take_one_launch_for_each_kind(case, monkeypatch):
    launches = []
    launch = CpuLauncher.launch
    monkeypatch.setattr(
        CpuLauncher, "launch", lambda own, *a: (launches.append(own.bucket.kind), launch(own, *a))
    )
    params = make_params([(3,), (2, 3)] * 233)[:465]
    optimizer = case.make([{"params": [p], "weight_decay": 1e-4 * k} for k, p in enumerate(params)])
    for step in range(2):
        set_grads(params, step)
        launches.clear()
        optimizer.step()
        factored = optimizer._plan.buckets[0].rule.factored
        assert sorted(launches) == (["matrix", "vector"] if factored else ["elementwise"])


def test_seventy_thousand_tensors_of_one_element_are_right():
    whole = make_params([(70_000,)])
    pieces = [torch.nn.Parameter(x) for x in whole[0].detach().clone().split(1)]
    options = {"lr": 0.05, "no_deprecation_warning": True}
    one, many = fusedstep.hf.AdamW(whole, **options), fusedstep.hf.AdamW(pieces, **options)
    for step in range(2):
        set_grads(whole, step)
        for param, grad in zip(pieces, whole[0].grad.split(1), strict=True):
            param.grad = grad
        one.step()
        many.step()
    assert same_bits(torch.cat([p.detach() for p in pieces]), whole[0].detach())


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31_are_right():
    """A stack of 2048 copies of one matrix has the same means, so the results are the same."""
    small = make_params([(1024, 1025)], torch.bfloat16)
    set_grads(small, 0)
    large = [torch.nn.Parameter(small[0].detach().repeat(2048, 1))]
    large[0].grad = small[0].grad.repeat(2048, 1)
    assert large[0].numel() > 2**31
    for params in (small, large):
        fusedstep.optim.Adafactor(params, lr=0.1).step()
    assert not torch.equal(small[0], make_params([(1024, 1025)], torch.bfloat16)[0])
    for part in large[0].detach().split(1024):
        assert torch.equal(part, small[0])
