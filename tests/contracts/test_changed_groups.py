"""Scripts that change groups, parameters and states between steps."""

import copy
import pickle

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from fusedstep.accumulate import GradientAccumulator
from tests.support.cases import CASES, assert_same, each, make_params, same_bits, set_grads, states
from tests.support.rule_cases import once_a_kind

SHAPES = [(33, 17), (7,), (5,)]
ADAFACTORS = [case for case in CASES if case.name in ("adafactor", "hf-adafactor")]


def stepped(optimizer, params, steps=2):
    for step in range(steps):
        set_grads(params, step)
        optimizer.step()
    return optimizer


@once_a_kind
def test_a_group_that_is_cut_down_to_its_vectors(case):
    """As when a script freezes layers and trains the biases only."""
    params, alone = make_params(SHAPES), make_params(SHAPES)
    ours, expected = stepped(case.make(params), params), stepped(case.make(alone), alone)
    ours.param_groups[0]["params"] = params[1:]
    alone[0].grad = None
    set_grads(params[1:], 5)
    set_grads(alone[1:], 5)
    ours.step()
    expected.step()
    assert all(map(same_bits, params, alone))


@once_a_kind
def test_a_group_that_is_deleted(case):
    params = make_params(SHAPES)
    optimizer = stepped(case.make([{"params": params[:2]}, {"params": params[2:]}]), params)
    del optimizer.param_groups[0]
    kept = [param.detach().clone() for param in params]
    set_grads(params, 5)
    optimizer.step()
    assert [same_bits(*pair) for pair in zip(params, kept, strict=True)] == [True, True, False]


@each(ADAFACTORS)
def test_a_vector_that_takes_the_place_of_one_among_matrices(case):
    params = make_params(SHAPES)
    optimizer = stepped(case.make([{"params": params[:1]}, {"params": params[1:]}]), params)
    new = make_params([(9,)])
    optimizer.param_groups[1]["params"] = new
    stepped(optimizer, [params[0], *new])


@each(ADAFACTORS)
def test_flat_vectors_are_refused_after_a_checkpoint_too(case):
    params = make_params(SHAPES)
    optimizer = stepped(case.make(params), params)
    for _ in range(2):
        optimizer.load_state_dict(optimizer.state_dict())
    flat = torch.nn.Parameter(torch.cat([param.detach().reshape(-1) for param in params]))
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match=r"one flat vector.* elementwise optimizer"):
        optimizer.step()


@each(ADAFACTORS)
def test_one_flattened_group_among_others_is_refused(case):
    params = make_params(SHAPES)
    optimizer = stepped(case.make([{"params": params[:1]}, {"params": params[1:]}]), params)
    flat = torch.nn.Parameter(params[0].detach().reshape(-1).clone())
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0.* one flat vector"):
        optimizer.step()


@each(ADAFACTORS)
def test_several_vectors_in_one_are_refused(case):
    """Each would be clipped by the size of all."""
    vectors = make_params([(5,), (7,)])
    optimizer = stepped(case.make(vectors), vectors)
    flat = torch.cat([param.detach() for param in vectors]).requires_grad_()  # as ZeRO's is
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0.* one flat vector"):
        optimizer.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@each(ADAFACTORS)
def test_a_copy_does_not_take_an_older_vector_for_a_flattened_group(case, copied):
    """The copy does not know what the groups were made with. Matrices are added later."""
    vectors = make_params([(5,)])
    optimizer = copied(stepped(case.make(vectors), vectors))
    matrices = make_params([(4, 3)])
    optimizer.add_param_group({"params": matrices})
    stepped(optimizer, [*optimizer.param_groups[0]["params"], *matrices])
    loaded = case.make([{"params": make_params([(5,)])}, {"params": make_params([(4, 3)])}])
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(loaded, [param for group in loaded.param_groups for param in group["params"]])


@each(ADAFACTORS)
def test_a_vector_that_is_replaced_after_a_group_of_matrices_was_deleted(case):
    params = make_params([(4, 3), (5,)])
    optimizer = stepped(case.make([{"params": params[:1]}, {"params": params[1:]}]), params)
    del optimizer.param_groups[0]
    new = make_params([(9,)])
    optimizer.param_groups[0]["params"] = new
    stepped(optimizer, new)


@once_a_kind
def test_a_model_converts_its_parameters_by_swapping_them(case):
    """torch refuses that if there is a weak reference to a parameter."""
    model = torch.nn.Linear(5, 3)
    optimizer = case.make(model.parameters())
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    stepped(optimizer, list(model.parameters()))
    assert model.weight.dtype == torch.float64


@each([case for case in CASES if case.takes("weight_decay")])
def test_a_weight_decay_that_is_no_number_is_refused(case):
    params = make_params(SHAPES)
    optimizer = stepped(case.make(params), params)
    optimizer.param_groups[0]["weight_decay"] = float("nan")
    with pytest.raises(ValueError, match="weight_decay should be a number but is: nan"):
        optimizer.step()


@once_a_kind
def test_parameters_of_lazy_modules(case):
    torch.manual_seed(0)
    model = torch.nn.LazyLinear(3)
    optimizer = case.make(model.parameters())
    model(torch.ones(2, 5)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.weight)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@once_a_kind
def test_a_parameter_twice_in_a_list_is_refused(case):
    params = make_params(SHAPES)
    optimizer = case.make([*params, params[1]])
    set_grads(params, 0)
    said = r"parameter 3 of group 0 .*\(7,\).* is parameter 1 of group 0 .* once more.*Give it once"
    with pytest.raises(ValueError, match=said):
        optimizer.step()
    assert not any(optimizer.state.values()) or not case.starts_empty


@pytest.mark.parametrize("kind", [tuple, torch.nn.ParameterList])
@once_a_kind
def test_parameters_in_another_container_than_a_list(case, kind):
    params, alone = make_params(SHAPES), make_params(SHAPES)
    ours, expected = case.make(params), case.make(alone)
    ours.param_groups[0]["params"] = kind(params)
    assert_same(stepped(ours, params), params, stepped(expected, alone), alone)


@once_a_kind
def test_what_a_user_keeps_in_the_state(case):
    params, alone = make_params(SHAPES), make_params(SHAPES)
    ours, expected = stepped(case.make(params), params), stepped(case.make(alone), alone)
    ours.state["tokens"] = 1
    assert_same(stepped(ours, params), params, stepped(expected, alone), alone)
    plan = ours._plan
    ours.state["tokens"] = [2]
    stepped(ours, params)
    stepped(expected, alone)
    assert ours._plan is plan  # a new plan takes as long as a hundred steps
    assert_same(stepped(ours, params), params, stepped(expected, alone), alone)


@pytest.mark.parametrize("saved_by", [torch.optim.AdamW, torch.optim.Adam, fusedstep.optim.AdamW])
@pytest.mark.parametrize("ours", [fusedstep.hf.AdamW, fusedstep.hf.AdamWeightDecay])
def test_a_checkpoint_of_torchs_adamw_goes_on_in_transformers(ours, saved_by):
    options = {"no_deprecation_warning": True} if ours is fusedstep.hf.AdamW else {"clipnorm": 1.0}
    params = make_params(SHAPES)
    peer = stepped(saved_by(params), params)
    optimizer = ours(params, **options)
    optimizer.load_state_dict(peer.state_dict())
    stepped(optimizer, params, steps=1)
    own = states(optimizer, params[0])
    assert own["step"] == 3 and own["exp_avg"].abs().sum() > 0


def test_an_error_in_the_scalars_comes_before_gradients_are_clipped():
    params = make_params(SHAPES)
    optimizer = fusedstep.hf.AdamWeightDecay(params, clipnorm=0.01)
    stepped(optimizer, params)
    set_grads(params, 5)
    before = [param.grad.clone() for param in params]
    optimizer.param_groups[0]["weight_decay"] = "much"
    with pytest.raises(TypeError):
        optimizer.step()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_an_accumulator_is_copied_with_its_sums(copied):
    params = make_params(SHAPES)
    accumulator = GradientAccumulator(params)
    set_grads(params, 0)
    accumulator()
    other = copied(accumulator)
    assert other.step == 1
    assert all(map(torch.equal, accumulator.gradients, other.gradients))
    set_grads(params, 1)
    accumulator()
    assert not any(map(torch.equal, accumulator.gradients, other.gradients))
    set_grads(other._params, 1)
    other()
    assert all(map(torch.equal, accumulator.gradients, other.gradients))


def test_a_step_inside_a_compiled_function(recwarn):
    params, alone = make_params(SHAPES), make_params(SHAPES)
    ours, expected = fusedstep.optim.AdamW(params), fusedstep.optim.AdamW(alone)
    compiled = torch.compile(ours.step, backend="eager")
    for step in range(12):  # above torch's limit of recompilations
        set_grads(params, step)
        set_grads(alone, step)
        ours.param_groups[0]["lr"] = expected.param_groups[0]["lr"] = 0.1 / (1 + step)
        compiled()
        expected.step()
    assert_same(ours, params, expected, alone)
    assert not [str(w.message) for w in recwarn if "trace" in str(w.message)]
