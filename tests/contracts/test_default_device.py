"""A step makes its host tensors on the CPU, whatever torch's default device is. `meta` stands for a
GPU here: the CPU cannot read a tensor that is made there by mistake."""

import pytest
import torch

import fusedstep.hf
from fusedstep.schedules import by_name
from tests.support.accumulating import ACCUMULATE
from tests.support.cases import CASES, assert_same, each, make_params, set_grads
from tests.support.rule_cases import ONE_A_KIND
from tests.support.sweeps import sweep

SHAPES = [(), (7,), (33, 17), (3, 5, 7), (2, 270, 260)]
CASES_HERE = sweep([ACCUMULATE, *CASES], [ACCUMULATE, *ONE_A_KIND])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("first", [0, 1])
@each(CASES_HERE)
def test_steps_are_the_same_under_another_default_device(case, first, backend):
    seen = []
    for device in ("cpu", "meta"):
        params = make_params(SHAPES)
        optimizer = case.make(params, backend=backend)
        for step in range(3):
            set_grads(params, step)
            with torch.device(device if step >= first else "cpu"):
                optimizer.step()
        seen += [optimizer, params]
    assert_same(*seen)


@each([case for case in CASES if case.name in ("adamw", "adafactor", "hf-adafactor")])
def test_checkpoints_are_loaded_under_another_default_device(case):
    params = make_params(SHAPES)
    optimizer = case.make(params)
    set_grads(params, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    for own in saved["state"].values():
        own["step"] = float(own["step"])  # as in old checkpoints
    with torch.device("meta"):
        optimizer.load_state_dict(saved)
        optimizer.step()
    assert all(float(own["step"]) == 2 for own in optimizer.state.values())


@pytest.mark.parametrize("limit", [{"clipnorm": 0.1}, {"global_clipnorm": 0.1}])
def test_gradients_are_clipped_under_another_default_device(limit):
    seen = []
    for device in ("cpu", "meta"):
        params = make_params(SHAPES)
        optimizer = fusedstep.hf.AdamWeightDecay(params, **limit)
        set_grads(params, 0, scale=1.0)
        with torch.device(device):
            optimizer.step()
        seen += [optimizer, params]
    assert_same(*seen)


@pytest.mark.parametrize("name", ["cosine", "greedy", "reduce_lr_on_plateau"])
def test_schedules_go_on_under_another_default_device(name):
    rates = []
    for device in ("cpu", "meta"):
        lr = torch.tensor(0.5)
        optimizer = torch.optim.SGD(make_params([(3,)]), lr=lr)
        schedule = by_name(
            name,
            optimizer,
            **(
                {"num_training_steps": 9, "num_warmup_steps": 2}
                if name == "cosine"
                else {"patience": 0}
            ),
        )
        with torch.device(device):
            for loss in (3.0, 4.0, 5.0):
                optimizer.step()
                schedule.step(*([] if name == "cosine" else [loss]))
        rates.append([float(rate) for rate in schedule.get_last_lr()])
    assert rates[0] == rates[1] and rates[0] != [0.5]
