"""The real DeepSpeed's ZeRO in two processes: AdamW goes in as it is, Adafactor through InZero.
Both take the steps of one process."""

import itertools
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fusedstep.optim import InZero, full_state_dict
from tests.support.cases import each, same_bits
from tests.support.processes import on_processes
from tests.support.rule_cases import FACTORED
from tests.support.sharded import case_of
from tests.support.sweeps import sweep
from tests.support.zero import engine_of

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
FEW = [case for case in FACTORED if case.name in ("adafactor", "hf-adafactor-momentum")]
FLOAT, BFLOAT16 = torch.float32, torch.bfloat16
# Relative to the update of some steps. Sums are added up in another order.
APART = 2e-6
# The border of two processes is inside the batch of matrices.
SHAPES = [(33, 17), (70,), (1, 40), (8, 40, 20), (4, 3, 3, 3), (1,), (3, 1), (5,), (300, 20)]


class Net(nn.Module):
    """A loss whose gradients are the numbers that it is called with, whatever the weights are."""

    def __init__(self, dtype=FLOAT):
        super().__init__()
        made = (number.to(dtype) for number in numbers(0, 0))
        self.own = nn.ParameterList(map(nn.Parameter, made))

    def forward(self, numbers):
        return sum((p.float() * n).sum() for p, n in zip(self.own, numbers, strict=True))


def numbers(step, rank):
    """They are bfloat16, so that no dtype of gradients rounds them."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    made = (torch.randn(shape, generator=generator) for shape in SHAPES)
    return [(number * 10.0 ** -(step % 3)).bfloat16().float() for number in made]


def as_one_group(params):
    return params


def by_decay(params):
    vectors = [param for param in params if param.dim() < 2]
    return [
        {"params": vectors, "weight_decay": 0.0},
        {"params": [param for param in params if param.dim() > 1]},
    ]


both_ways = pytest.mark.parametrize(
    ("dtype", "groups", "stage"),
    sweep(
        itertools.product([FLOAT, BFLOAT16], [as_one_group, by_decay], [1, 2]),
        [(FLOAT, as_one_group, 1), (BFLOAT16, by_decay, 1)],
    ),
    ids=lambda own: getattr(own, "__name__", str(own)),
)


def in_zero(case):
    """The class of a case, inside ZeRO."""
    return type("Zero" + case.ours.__name__, (InZero, case.ours), {})


class Both:
    """An engine, and the same model in one process that has the mean of all gradients. ZeRO's
    vectors are in float32, so the one process is, too."""

    def __init__(self, case, ours, dtype=FLOAT, groups=as_one_group, **options):
        self.case, self.ours, self.groups, self.dtype = case, ours, groups, dtype
        self.options = options
        self.one = Net(dtype).float()
        self.first = [param.detach().clone() for param in self.one.parameters()]
        self.one_optimizer = case.make(groups(list(self.one.parameters())))
        self.steps = 0
        self.start()

    def start(self):
        self.model = Net()
        params = self.groups(list(self.model.parameters()))
        self.optimizer = self.ours(params, **self.case.options, **self.case.only_ours)
        self.engine = engine_of(self.model, self.optimizer, self.dtype, **self.options)

    def step(self, count=1):
        for _ in range(count):
            self.steps += 1
            self.engine.backward(self.engine(numbers(self.steps, dist.get_rank())))
            self.engine.step()
            for param, *own in zip(self.one.parameters(), *self.of_all_ranks(), strict=True):
                param.grad = torch.stack(own).to(self.dtype).sum(0).div(len(own)).float()
            self.one_optimizer.step()

    def of_all_ranks(self):
        return [numbers(self.steps, rank) for rank in range(dist.get_world_size())]

    def weights(self):
        """Of the engine, of one process as the model's dtype has them, and the first ones."""
        found = (param.detach().float() for param in self.model.parameters())
        expected = (param.detach().to(self.dtype).float() for param in self.one.parameters())
        return list(zip(found, expected, self.first, strict=True))

    def assert_near(self):
        # A bfloat16 that is rounded the other way is 2^-8 apart: few may be.
        bound = APART if self.dtype == FLOAT else 2**-8 / 4
        for found, expected, first in self.weights():
            apart = (found - expected).norm() / (expected - first).norm()
            assert apart <= bound, f"{tuple(found.shape)}: {apart:.1e}"


@on_processes(2)
@both_ways
def test_adamw_goes_in_as_it_is_and_has_the_bits_of_one_process(dtype, groups, stage):
    case = case_of("adamw")
    both = Both(case, case.ours, dtype, groups, stage=stage)
    exact = [nn.Parameter(param.double()) for param in both.first]
    torchs = case.make_peer(groups(exact))
    for _ in range(6):
        both.step()
        for param, one in zip(exact, both.one.parameters(), strict=True):
            param.grad = one.grad.double()
        torchs.step()
    for found, expected, _ in both.weights():
        assert same_bits(found, expected)
    for found, param in zip(both.one.parameters(), exact, strict=True):
        # Each of six steps rounds to float32.
        torch.testing.assert_close(found.double(), param, rtol=6 * 2**-23, atol=6 * 2**-23)


@on_processes(2)
@both_ways
@each(FEW)
def test_adafactor_on_pieces_makes_the_step_of_one_process(case, stage, groups, dtype):
    both = Both(case, in_zero(case), dtype, groups, stage=stage)
    both.step(6)
    both.assert_near()


@on_processes(2)
@each(FEW)
def test_a_checkpoint_of_the_engine_resumes_with_the_same_bits(case, tmp_path):
    tmp_path = [tmp_path]
    dist.broadcast_object_list(tmp_path)
    both = Both(case, in_zero(case), groups=by_decay)
    both.step(3)
    both.engine.save_checkpoint(tmp_path[0], tag="third")
    both.step(3)
    expected = [found.clone() for found, _, _ in both.weights()]
    both.start()
    with torch.no_grad():
        for param in both.model.parameters():
            param.zero_()
    assert both.engine.load_checkpoint(tmp_path[0], tag="third")[0]
    both.steps = 3
    both.step(3)
    for (found, _, _), own in zip(both.weights(), expected, strict=True):
        assert same_bits(found, own)


@on_processes(2)
@each(FEW)
def test_whole_states_are_those_of_one_process(case):
    both = Both(case, in_zero(case))
    both.step(3)
    with both.optimizer.in_pieces():
        saved = full_state_dict(both.optimizer)
    resumed = case.make(list(both.one.parameters()))
    resumed.load_state_dict(saved)
    for param in both.one.parameters():
        expected, found = both.one_optimizer.state[param], resumed.state[param]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(torch.as_tensor(found[key]), torch.as_tensor(value))


@on_processes(2)
@each(FEW[:1])
def test_another_order_is_refused_on_every_rank(case):
    both = Both(case, in_zero(case), round_robin_gradients=True)
    before = both.optimizer.param_groups[0]["params"][0].detach().clone()
    with pytest.raises(RuntimeError, match=r"InZero: ZeRO's vector of 9 .* round_robin_gradients"):
        both.step()
    assert torch.equal(both.optimizer.param_groups[0]["params"][0], before)


@on_processes(2)
@each(FEW[:1])
def test_adafactor_alone_is_refused_on_every_rank(case):
    both = Both(case, case.ours)
    before = both.optimizer.param_groups[0]["params"][0].detach().clone()
    with pytest.raises(RuntimeError, match=r"now holds one flat vector.*fusedstep\.optim\.InZero"):
        both.step()
    assert torch.equal(both.optimizer.param_groups[0]["params"][0], before)


@on_processes(2)
@each(FEW[:1])
def test_a_closure_is_refused(case):
    both = Both(case, in_zero(case))
    with pytest.raises(RuntimeError, match="InZero: step takes no closure inside ZeRO"):
        both.optimizer.step(lambda: None)


@on_processes(2)
@each(FEW[:1])
def test_without_zero_nothing_changes(case):
    one, other = Net(), Net()
    optimizers = case.make(one.parameters()), in_zero(case)(other.parameters(), **case.options)
    for net, optimizer in zip((one, other), optimizers, strict=True):
        net(numbers(1, 0)).backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
    assert all(map(same_bits, one.parameters(), other.parameters()))
