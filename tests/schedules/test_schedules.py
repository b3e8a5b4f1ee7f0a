"""Learning rates that change at every step: schedulers, tensors, and Adafactor's step size."""

import copy
import pickle

import pytest
import torch
import transformers.optimization

import fusedstep.hf
import fusedstep.optim
from tests.support.cases import HF, HF_PEER, make_params, set_grads

ADAMW, TORCH_ADAMW = fusedstep.optim.AdamW, torch.optim.AdamW
ADAFACTOR, TORCH_ADAFACTOR = fusedstep.optim.Adafactor, torch.optim.Adafactor
SHAPES = [(), (7,), (33, 17), (3, 5, 7)]


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("make_schedule", [
    lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0 / (1 + step)),
    lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=9,
                                                cycle_momentum="betas" in opt.defaults),
    lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=5),
], ids=["lambda", "one-cycle", "cosine"])  # fmt: skip
@pytest.mark.parametrize(("ours", "peer"), [(ADAMW, TORCH_ADAMW), (ADAFACTOR, TORCH_ADAFACTOR)])
def test_schedules_act_as_on_the_peer(ours, peer, make_schedule, tensor_lr):
    lr = torch.tensor(0.05) if tensor_lr else 0.05
    runs = []
    for optimizer_class in (ours, peer):
        params = make_params(SHAPES)
        optimizer = optimizer_class(params, lr=copy.deepcopy(lr), weight_decay=0.1)
        schedule, rates = make_schedule(optimizer), []
        for step in range(6):
            set_grads(params, step)
            optimizer.step()
            schedule.step()
            rates.append(float(optimizer.param_groups[0]["lr"]))
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == tensor_lr
        runs.append((params, rates))
    assert runs[0][1] == runs[1][1]
    for p, q in zip(runs[0][0], runs[1][0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_tensor_lr_is_the_same_object_and_read_at_every_step():
    lr, params = torch.tensor(0.05), make_params(SHAPES)
    optimizer = ADAMW(params, lr=lr, weight_decay=0.0)
    assert optimizer.param_groups[0]["lr"] is lr
    set_grads(params, 0)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    lr.fill_(0.0)
    optimizer.step()
    assert all(map(torch.equal, params, before))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_tensor_betas_equal_floats(shape):
    runs = []
    for betas in [(torch.full(shape, 0.5), torch.full(shape, 0.75)), (0.5, 0.75)]:
        params = make_params(SHAPES)
        optimizer = ADAMW(params, betas=betas)
        for step in range(3):
            set_grads(params, step)
            optimizer.step()
        runs.append(params)
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize(
    "options", [{}, {"warmup_init": True}, {"scale_parameter": False}], ids=str
)
def test_adafactor_schedule_shows_the_peers_values(options):
    seen = []
    for optimizer_class, module in ((HF, fusedstep.hf), (HF_PEER, transformers.optimization)):
        params = make_params(SHAPES)
        groups = [{"params": params[2:]}, {"params": params[1::-1], "scale_parameter": True}]
        optimizer = optimizer_class(groups, **options)
        schedule = module.get_adafactor_schedule(optimizer, 0.125)
        assert type(schedule) is module.AdafactorSchedule
        values = [schedule.get_last_lr()]
        for step in range(10):
            set_grads(params, step)
            optimizer.step()
            schedule.step()
            values.append([float(lr) for lr in schedule.get_last_lr()])
            assert [float(group["lr"]) for group in optimizer.param_groups] == values[-1]
        seen.append(torch.tensor(values, dtype=torch.float64))
    assert seen[0][0].tolist() == [0.125, 0.125]
    torch.testing.assert_close(seen[0], seen[1], rtol=2e-6, atol=0.0)


def test_adafactor_schedule_asks_for_an_optimizer_that_knows_its_step_size():
    with pytest.raises(TypeError, match=r"knows its own step size.*AdamW"):
        fusedstep.hf.AdafactorSchedule(ADAMW(make_params([(2,)])))


def test_adafactor_schedule_shows_its_start_until_there_is_a_state():
    """transformers' class raises a KeyError if it is made between backward and the first step."""
    params = make_params(SHAPES)
    optimizer = HF(params)
    set_grads(params, 0)
    schedule = fusedstep.hf.AdafactorSchedule(optimizer, 0.5)
    assert schedule.get_last_lr() == [0.5]
    assert "initial_lr" not in optimizer.param_groups[0]


def test_adafactor_schedule_does_not_replace_a_learning_rate_that_was_given():
    """transformers' class sets it to the schedule's start, so training stops silently."""
    optimizer = HF(make_params([(2,)]), lr=1e-3, relative_step=False)
    with pytest.raises(ValueError, match=r"group 0 has relative_step=False.*initial_lr=0\.0"):
        fusedstep.hf.AdafactorSchedule(optimizer)


def test_adafactor_schedule_can_be_pickled():
    params = make_params([(3, 4)])
    schedule = fusedstep.hf.AdafactorSchedule(HF(params), 0.5)
    again = pickle.loads(pickle.dumps(schedule))
    assert again.get_last_lr() == [0.5]
    set_grads(params, 0)
    schedule.optimizer.step()
    schedule.step()
    assert pickle.loads(pickle.dumps(schedule)).get_last_lr() == schedule.get_last_lr() != [0.5]


def on_device(number):
    """A number that raises when it is read. It stands for one on a device."""
    return torch.empty((), dtype=torch.float32, device="meta").fill_(number)


def rates_over_six_steps(make, *, away):
    optimizer = ADAMW(make_params([(2,)]), lr=torch.tensor(0.5))
    schedule = make(optimizer)
    if away:
        optimizer.param_groups[0]["lr"] = on_device(0.5)
    rates = []
    for step in range(6):
        optimizer._opt_called = True  # in place of a step, which would read lr
        schedule.step(*([1.0 - step] if isinstance(schedule, fusedstep.hf.GreedyLR) else []))
        rates.append(schedule.get_last_lr())
    return rates


@pytest.mark.parametrize("make", [
    lambda opt: fusedstep.hf.get_linear_schedule_with_warmup(opt, 2, 9),
    lambda opt: fusedstep.hf.GreedyLR(opt, patience=0, factor=0.5, max_lr=3.0),
    lambda opt: fusedstep.hf.WarmUp(fusedstep.hf.get_inverse_sqrt_schedule(opt, 0), 3),
], ids=["linear", "greedy", "warm-up"])  # fmt: skip
def test_a_schedule_never_reads_a_learning_rate_on_a_device(make):
    assert rates_over_six_steps(make, away=True) == rates_over_six_steps(make, away=False)


def test_adafactor_and_its_schedule_read_nothing_from_a_device():
    params = make_params(SHAPES)
    optimizer = HF(params)
    schedule = fusedstep.hf.AdafactorSchedule(optimizer)
    set_grads(params, 0)
    optimizer.step()
    for param in params:
        optimizer.state[param]["RMS"] = on_device(1.0)
    schedule.step()
    (lr,) = (group["lr"] for group in optimizer.param_groups)
    assert lr.device.type == "meta"
    with pytest.raises(RuntimeError, match=r"meta"):
        schedule.get_last_lr()
    for param in params:
        optimizer.state[param]["RMS"] = torch.zeros(())
    optimizer.step()  # with relative_step, lr is shown but not read


def test_a_step_size_without_a_number_is_the_least_one():
    """As in transformers, since Python's `max` then returns its first argument."""
    group = {"lr": None, "relative_step": True, "warmup_init": False}
    group |= {"scale_parameter": True, "eps": (1e-30, 0.5)}
    state = {"step": 4, "RMS": torch.tensor(float("nan"))}
    ours, peers = (float(kind._get_lr(group, state)) for kind in (HF, HF_PEER))
    assert ours == pytest.approx(peers, rel=1e-6)
