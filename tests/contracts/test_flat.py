"""Adafactor on flat pieces, which threads hold as processes would: the step is that of one process.
`tests/distributed` has real processes."""

import copy
import itertools

import pytest
import torch

import fusedstep.optim
from fusedstep import backends
from fusedstep.backends import reference
from fusedstep.plan import flat
from fusedstep.plan.exchange_layout import ExchangeError
from tests.support.cases import (
    DTYPES,
    assert_same,
    each,
    make_params,
    same_bits,
    set_grads,
)
from tests.support.flat import CUTS, Pieces, Ranks
from tests.support.rule_cases import FACTORED
from tests.support.sweeps import sweep

BACKENDS = [name for name in ("cpu", "reference") if not backends.BACKENDS[name].why_absent()]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_cut = pytest.mark.parametrize("name", sweep(CUTS, ["uneven"]))
SMALL = [case for case in FACTORED if case.name in ("adafactor", "hf-adafactor")]
FEW = [(33, 17), (7,), (2, 5, 7)]
SOME = [*FEW, (), (0,), (600, 120), (1, 300)]
# Of one block of rows and of several, of one tile of columns and of several, tiny ones, batches.
SHAPES = [
    (), (0,), (7,), (70001,), (1, 1), (5, 0, 3), (1, 300), (300, 1), (33, 17), (9, 1030),
    (600, 120), (4, 3, 3, 3), (700, 3, 3), (2, 270, 260),
]  # fmt: skip


def trained(case, dtype, backend, cuts, steps=3, shapes=SHAPES, whole=True):
    """The pieces and their optimizers; the optimizer of one process."""
    params = make_params(shapes, dtype)
    pieces = Pieces(params, cuts)
    optimizers = [case.make(own, backend=backend) for own in pieces.of_ranks]
    one = case.make(params, backend=backend)
    for step in range(steps):
        set_grads(params, step, scale=1.0 if dtype == torch.float16 else 0.01)
        pieces.set_grads()
        pieces.processes.step(optimizers)
        if whole:
            one.step()
    return pieces, optimizers, one


# What the backends share bit for bit need not be shown twice.
@pytest.mark.parametrize(
    ("case", "backend"),
    sweep(
        itertools.product(FACTORED, BACKENDS),
        itertools.chain(
            itertools.product(FACTORED, BACKENDS[:1]), itertools.product(SMALL, BACKENDS)
        ),
    ),
    ids=str,
)
@each_cut
def test_pieces_make_the_step_of_one_process(case, name, backend):
    pieces, optimizers, one = trained(case, torch.float64, backend, CUTS[name])
    for found, param in zip(pieces.joined(), pieces.params, strict=True):
        torch.testing.assert_close(found, param.detach(), rtol=1e-12, atol=1e-14)
    for optimizer, own in zip(optimizers, pieces.of_ranks, strict=True):
        for piece, param in zip(own, pieces.params, strict=True):
            if piece.numel() == 0:
                assert piece not in optimizer.state
                continue
            for key in case.ours.reduced:
                if key in one.state[param]:
                    expected = one.state[param][key]
                    torch.testing.assert_close(
                        optimizer.state[piece][key], expected, rtol=1e-12, atol=0
                    )


@each(FACTORED)
@each_cut
@pytest.mark.parametrize("dtype", sweep(DTYPES, DTYPES[:2]), ids=str)
def test_backends_agree_bit_for_bit(case, name, dtype):
    if len(BACKENDS) < 2:
        pytest.skip("the C++ module is not built")
    runs = [trained(case, dtype, backend, CUTS[name], 2, whole=False) for backend in BACKENDS]
    for rank in range(len(CUTS[name]) + 1):
        sides = [(optimizers[rank], pieces.of_ranks[rank]) for pieces, optimizers, _ in runs]
        assert_same(*sides[0], *sides[1])


@each_backend
@each(SMALL)
@pytest.mark.parametrize("dtype", sweep(DTYPES, DTYPES[:2]), ids=str)
def test_what_one_process_holds_alone_keeps_its_bits_and_needs_no_message(case, dtype, backend):
    pieces, _, _ = trained(case, dtype, backend, CUTS["whole"])
    assert all(map(same_bits, pieces.joined(), pieces.params))
    assert pieces.processes.seen == []


@each_backend
@each(SMALL)
def test_a_step_takes_two_messages_of_one_number_for_each_row_and_column(case, backend):
    pieces, _, _ = trained(case, torch.float32, backend, CUTS["halves"], steps=1, shapes=FEW)
    count, sums = 3, (33 + 17 + 1) + (1 + 1) + (2 * 5 + 2 * 7 + 1)  # a vector: p^2 and u^2
    assert pieces.processes.seen == [count + sums, 2 + 2]


@each_backend
@each(SMALL)
def test_parameters_without_a_gradient_anywhere_are_left_alone(case, backend):
    pieces, optimizers, one = trained(case, torch.float64, backend, CUTS["uneven"], 2, FEW)
    before = pieces.joined()[0]
    pieces.params[0].grad = None
    pieces.set_grads()
    pieces.processes.step(optimizers)
    one.step()
    assert torch.equal(pieces.joined()[0], before)
    for found, param in zip(pieces.joined(), pieces.params, strict=True):
        torch.testing.assert_close(found, param.detach(), rtol=1e-12, atol=1e-14)


@each_backend
@each(SMALL)
def test_a_gradient_that_some_process_lacks_is_an_error_on_all_and_changes_nothing(case, backend):
    pieces, optimizers, _ = trained(case, torch.float32, backend, CUTS["uneven"], 2, FEW)
    before = pieces.joined()
    kept = [
        [
            value.clone()
            for state in optimizer.state.values()
            for value in map(torch.as_tensor, state.values())
        ]
        for optimizer in optimizers
    ]
    pieces.of_ranks[2][0].grad = None  # rank 1 has nothing of it
    for error in pieces.processes.run([optimizer.step for optimizer in optimizers]):
        assert isinstance(error, ExchangeError)
        assert "parameter 0 of group 0 (" in str(error)
        assert "has no gradient on rank 2, but" in str(error)
    assert all(map(torch.equal, before, pieces.joined()))
    for optimizer, old in zip(optimizers, kept, strict=True):
        new = [
            value
            for state in optimizer.state.values()
            for value in map(torch.as_tensor, state.values())
        ]
        assert all(map(torch.equal, old, new))


@each(SMALL)
@pytest.mark.parametrize(
    ("start", "reason"),
    [(100, "ranks 0 and 1 both hold element 100"), (300, "no rank holds elements 224 to 300")],
)
def test_runs_that_overlap_or_leave_gaps_are_an_error_on_all(case, start, reason):
    (param,) = make_params([(33, 17)])
    pieces = Pieces([param], CUTS["halves"])
    wrong = pieces.of_ranks[1][0]
    flat.declare(wrong, flat.piece_of(wrong)._replace(start=start))
    optimizers = [case.make(own) for own in pieces.of_ranks]
    param.grad = torch.ones_like(param)
    pieces.set_grads()
    for error in pieces.processes.run([optimizer.step for optimizer in optimizers]):
        assert isinstance(error, ExchangeError)
        assert reason in str(error)
        assert "declare_shard" in str(error)


@each(SMALL)
def test_another_whole_shape_on_some_process_is_an_error_on_all(case):
    (param,) = make_params([(33, 17)])
    pieces = Pieces([param], CUTS["halves"])
    wrong = pieces.of_ranks[1][0]
    flat.declare(wrong, flat.piece_of(wrong)._replace(shape=torch.Size((17, 33))))
    optimizers = [case.make(own) for own in pieces.of_ranks]
    param.grad = torch.ones_like(param)
    pieces.set_grads()
    for error in pieces.processes.run([optimizer.step for optimizer in optimizers]):
        assert isinstance(error, ExchangeError)
        assert "ranks 0 and 1 have other sharded parameters" in str(error)


@each(SMALL)
def test_a_piece_that_has_another_size_than_declared_is_refused_on_all(case):
    pieces, optimizers, _ = trained(case, torch.float32, None, CUTS["halves"], 1, FEW)
    piece = pieces.of_ranks[1][0]
    piece.data = piece.data[:-1].clone()
    piece.grad = torch.ones_like(piece)
    first, second = pieces.processes.run([optimizer.step for optimizer in optimizers])
    assert "it was declared with 337 elements and has 336 now. Call declare_shard again" in str(
        second
    )
    assert isinstance(first, ExchangeError)
    assert "rank 1 refused this step" in str(first)


@each_backend
@each([case for case in FACTORED if case.name in ("adafactor", "hf-adafactor-momentum")])
def test_whole_states_resume_in_other_pieces_and_in_one_process(case, backend):
    pieces, optimizers, one = trained(case, torch.float64, backend, CUTS["uneven"], 2, SOME)
    saved = pieces.processes.run(
        [lambda own=own: fusedstep.optim.full_state_dict(own) for own in optimizers]
    )
    for other in saved[1:]:
        assert other["state"].keys() == saved[0]["state"].keys()
    for index, param in enumerate(pieces.params):
        if param.numel():
            for key, value in one.state[param].items():
                found = torch.as_tensor(saved[1]["state"][index][key])
                torch.testing.assert_close(
                    found, torch.as_tensor(value), rtol=1e-11, atol=1e-14, check_dtype=False
                )
    alone = [torch.nn.Parameter(own.clone()) for own in pieces.joined()]
    peer = case.make_peer(alone)
    peer.load_state_dict(saved[0])
    resumed = case.make(alone, backend=backend)
    resumed.load_state_dict(saved[1])
    again = Pieces(alone, CUTS["halves"])
    others = [case.make(own, backend=backend) for own in again.of_ranks]
    for other in others:
        other.load_state_dict(copy.deepcopy(saved[0]))  # loading does not copy
    for params, run in ((pieces.params, one.step), (alone, resumed.step)):
        set_grads(params, 9)
        if params is alone:
            again.set_grads()
        run()
    again.processes.step(others)
    for param, single, found in zip(pieces.params, alone, again.joined(), strict=True):
        torch.testing.assert_close(single, param, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(found, param.detach(), rtol=1e-11, atol=1e-13)


@each_backend
@each(SMALL)
def test_each_process_resumes_its_own_states_bit_for_bit(case, backend):
    pieces, optimizers, _ = trained(case, torch.float32, backend, CUTS["uneven"], 2, FEW)
    again = Pieces([torch.nn.Parameter(own) for own in pieces.joined()], CUTS["uneven"])
    others = [case.make(own, backend=backend) for own in again.of_ranks]
    for optimizer, other in zip(optimizers, others, strict=True):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for own, steps in ((pieces, optimizers), (again, others)):
        set_grads(own.params, 5)
        own.set_grads()
        own.processes.step(steps)
    for optimizer, own, other, params in zip(
        optimizers, pieces.of_ranks, others, again.of_ranks, strict=True
    ):
        assert_same(optimizer, own, other, params)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_gpu_backend_is_refused_by_name_and_otherwise_replaced_with_a_warning(name):
    with pytest.raises(RuntimeError, match=r"cannot update parameter 3 on cpu, .*Use 'auto'"):
        backends.check_flat(name, torch.device("cpu"), "parameter 3")
    for fine in (None, "auto", "cpu", "reference"):
        backends.check_flat(fine, torch.device("cpu"), "parameter 3")
    _, optimizers, _ = trained(SMALL[0], torch.float32, None, CUTS["halves"], 1, FEW)
    (bucket,) = (own for own in optimizers[0]._plan.buckets if own.mode == "flat")
    reference._warn_of_flat.cache_clear()
    with pytest.warns(UserWarning, match="flat pieces of matrices on cpu are updated by torch"):
        launcher = backends.BACKENDS[name].prepare(bucket)
    assert isinstance(launcher, reference.ReferenceLauncher)


PIECE = torch.nn.Parameter(torch.zeros(6))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", (2, 3), 0), TypeError, "param should be a plain tensor but is a str"),
        ((torch.zeros(2, 3), (2, 3), 0), ValueError, r"param should be flat \(1-D\) but has shape"),
        ((PIECE, 6, 0), ValueError, "shape should be sizes of 0 or more but is: 6"),
        ((PIECE, (2, -3), 0), ValueError, "shape should be sizes of 0 or more"),
        ((PIECE, (2, 3.0), 0), ValueError, "shape should be sizes of 0 or more"),
        ((PIECE, (2, 3), -1), ValueError, "start should be an int of 0 or more but is: -1"),
        ((PIECE, (2, 3), 0.5), ValueError, "start should be an int of 0 or more but is: 0.5"),
        ((PIECE, (2, 3), 1), ValueError, r"elements 1 to 7, but a parameter of shape \(2, 3\) has"),
        ((PIECE, (2, 3), 0), RuntimeError, "torch.distributed is not initialized"),
    ],
)
def test_wrong_arguments_of_declare_shard_are_refused_at_the_call(arguments, error, message):
    with pytest.raises(error, match=message):
        fusedstep.optim.declare_shard(*arguments)


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([(0, 3), (3, 3)], ""),
        ([(3, 3), (0, 3), (0, 0)], ""),
        ([(0, 0), (9, 0)], "no rank holds elements 0 to 6"),
        ([(0, 3), (4, 2)], "no rank holds elements 3 to 4"),
        ([(0, 3), (3, 2)], "no rank holds elements 5 to 6"),
        ([(0, 6), (0, 6)], "ranks 4 and 5 both hold element 0"),
    ],
)
def test_runs_must_make_up_the_whole(runs, reason):
    assert flat.why_no_partition(runs, [4, 5, 6][: len(runs)], 6) == reason


def test_fake_processes_run_together():
    ranks = Ranks(3)
    numbers = [torch.full((2,), float(rank), dtype=torch.float64) for rank in range(3)]
    ranks.run([lambda own=own: ranks.add_up(own) for own in numbers])
    assert all(own.tolist() == [3.0, 3.0] for own in numbers)
    found = ranks.run([lambda rank=rank: ranks.gather(rank) for rank in range(3)])
    assert found == list(itertools.repeat([0, 1, 2], 3))
