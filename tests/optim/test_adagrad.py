"""Adagrad makes its states at construction."""

import pytest
import torch

import fusedstep.optim
from tests.support.cases import make_params, same_bits, set_grads
from tests.support.versions import adagrad_takes_later_groups


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_may_be_loaded_after_it_was_made(dtype):
    """A master weight that was copied before would bring the old weights back."""
    params, others = make_params([(7,), (33, 17)], dtype), make_params([(7,), (33, 17)], dtype, 1)
    made = fusedstep.optim.Adagrad(params, lr=0.1, master_weights=True)
    for param, other in zip(params, others, strict=True):
        param.data.copy_(other)
    for optimizer, own in ((made, params), (None, others)):
        optimizer = optimizer or fusedstep.optim.Adagrad(own, lr=0.1, master_weights=True)
        for step in range(2):
            set_grads(own, step)
            optimizer.step()
    assert all(map(same_bits, params, others))


@pytest.mark.skipif(not adagrad_takes_later_groups(), reason="torch's own makes no states for it")
def test_a_group_that_is_added_later_has_the_constructors_first_value_as_in_torch():
    states = []
    for kind in (fusedstep.optim.Adagrad, torch.optim.Adagrad):
        first, second = make_params([(3,), (4,)])
        optimizer = kind([first], initial_accumulator_value=0.5)
        optimizer.add_param_group({"params": [second], "initial_accumulator_value": 7.0})
        set_grads([first, second], 0)
        optimizer.step()
        states.append(optimizer.state[second])
    torch.testing.assert_close(states[0]["sum"], states[1]["sum"])


def test_states_of_8_bits_start_with_the_first_value():
    params = make_params([(40, 128)])
    optimizer = fusedstep.optim.Adagrad(params, initial_accumulator_value=0.5, state_dtype="int8")
    state = optimizer.state[params[0]]
    assert state["sum"].dtype == torch.uint8 and (state["sum_scale"] == 0.5).all()
    wide = fusedstep.optim.Adagrad(params, state_dtype=torch.float32)
    wide.load_state_dict(optimizer.state_dict())
    found = wide.state[params[0]]["sum"]
    torch.testing.assert_close(found, torch.full_like(found, 0.5))
