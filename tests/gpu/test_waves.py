"""The order of work in waves, for Triton and CUDA: no item waits for a later ticket, and no wave
overwrites sums that another one still needs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedstep.backends.cuda
from fusedstep.gpu import cut, waves
from fusedstep.kernels import blocks

SIZES_OF = {"triton": blocks.UNIT_SIZES, "cuda": fusedstep.backends.cuda.UNIT_SIZES}
each_backend = pytest.mark.parametrize("unit_sizes", SIZES_OF.values(), ids=SIZES_OF)
shapes = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 200), st.integers(1, 4200)), min_size=1, max_size=9
)


def work_list(unit_sizes, shapes):
    """The layout, the waves, the kinds of work by number, and the entries."""
    layout, taken = cut.Layout(unit_sizes, 4), []
    for index, sizes in enumerate(shapes):
        goes = waves.take(unit_sizes, 4, *sizes)
        layout.add_matrices(*sizes, height=unit_sizes.wave_unit[4] if goes else None)
        taken += [index] if goes else []
    runs = waves.cut_into_waves([4 * b * r * c for b, r, c in shapes], taken)
    waves.share_partials(layout, runs)
    kinds = sorted({kind for run in runs for i in run for kind in layout.work[i]})
    number = {kind: index for index, kind in enumerate(kinds)}
    return layout, runs, kinds, waves.entries(layout, runs, number)


@pytest.fixture(params=[1, 400_000, 1 << 40], ids=["a tensor a wave", "a few", "one wave"])
def _wave_bytes(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waves, "WAVE_BYTES", request.param)
        yield


@pytest.mark.usefixtures("_wave_bytes")
@each_backend
@settings(deadline=None, max_examples=30)
@given(shapes=shapes)
def test_an_item_waits_only_for_earlier_ones_and_each_comes_once(unit_sizes, shapes):
    layout, runs, kinds, entries = work_list(unit_sizes, shapes)
    everything = {
        (kind, i, unit)
        for run in runs
        for i in run
        for kind, units in layout.work[i].items()
        for unit in range(units)
    }
    done = [0] * (len(shapes) + len(runs))
    for number, tensor, unit, need, gate, gate_need, also, _ in entries:
        everything.remove((kinds[number], tensor, unit))
        assert done[tensor] >= need and done[gate] >= gate_need
        # All items of the tensor's earlier phases, none of the same phase.
        assert need == sum(
            count for kind, count in layout.work[tensor].items() if kind.phase < kinds[number].phase
        )
        done[tensor] += 1
        if also >= 0:
            done[also] += 1
    assert not everything
    assert done[len(shapes) :] == [len(run) for run in runs]


@pytest.mark.usefixtures("_wave_bytes")
@each_backend
@settings(deadline=None, max_examples=30)
@given(shapes=shapes)
def test_sums_of_a_wave_are_written_where_those_before_are_not_needed_any_more(unit_sizes, shapes):
    """If two tensors have sums in the same memory, the later one waits for the end of the earlier
    one's wave."""
    layout, runs, kinds, entries = work_list(unit_sizes, shapes)
    places = {
        i: range(layout.cuts[i].partials_at, layout.cuts[i].partials_at + layout.partials_of[i])
        for i in range(len(shapes))
    }
    assert all(place.stop <= layout.partials for place in places.values())
    wave_of = {i: number for number, run in enumerate(runs) for i in run}
    gates = {}
    for number, tensor, _, _, gate, gate_need, *_ in entries:
        if kinds[number].phase == cut.PHASES["STATISTICS"]:
            wave = gate - len(shapes) if gate_need else None
            assert wave is None or gate_need == len(runs[wave])
            gates.setdefault(tensor, set()).add(wave)
    for i, place in places.items():
        for j, other in places.items():
            if i < j and max(place.start, other.start) < min(place.stop, other.stop):
                assert i in wave_of and j in wave_of, "tensors in phases share no memory"
                earlier, later = sorted((i, j), key=wave_of.get)
                assert wave_of[earlier] != wave_of[later]
                (gate,) = gates[later]
                # That wave waited in turn for the one before it in this memory, and so on.
                distance = unit_sizes.waves_ahead + 1  # so that a wave never waits for a recent one
                assert gate == wave_of[later] - distance
                assert (wave_of[later] - wave_of[earlier]) % distance == 0


def phases_in_order(unit_sizes):
    """(wave, phase) of the entries of five equal waves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waves, "WAVE_BYTES", 1)
        _, _, kinds, entries = work_list(unit_sizes, 5 * [(1, 64, 512)])
    return list(dict.fromkeys((tensor, kinds[number].phase) for number, tensor, *_ in entries))


@each_backend
def test_first_reads_are_as_many_waves_ahead_as_is_said(unit_sizes):
    order, ahead = phases_in_order(unit_sizes), unit_sizes.waves_ahead
    assert ahead == {"triton": 1, "cuda": 2}[next(n for n in SIZES_OF if SIZES_OF[n] is unit_sizes)]
    read, finish, update, last = map(
        cut.PHASES.get, ("STATISTICS", "FINISH", "UPDATE", "STORE_RMS")
    )
    assert order[:ahead] == [(wave, read) for wave in range(ahead)]
    for wave in range(5):
        if wave + ahead < 5:
            first = order.index((wave + ahead, read))
            assert order.index((wave, finish)) < first < order.index((wave, update))
    assert order[-1] == (4, last)


def test_the_switch_says_what_it_takes(monkeypatch):
    for asked, found in (("0", False), ("1", True)):
        monkeypatch.setenv("SWITCH", asked)
        assert waves.wanted("SWITCH") is found
    monkeypatch.setenv("SWITCH", "on")
    with pytest.raises(ValueError, match="SWITCH should be 0 or 1 but is: 'on'"):
        waves.wanted("SWITCH")
    monkeypatch.delenv("SWITCH")
    assert not waves.wanted("SWITCH")
