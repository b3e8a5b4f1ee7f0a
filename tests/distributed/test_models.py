"""Models that frameworks shard: every step is that of one process with the same gradients."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from fusedstep.hf import GradientAccumulator
from fusedstep.hf.adam_weight_decay import AdamWeightDecay
from fusedstep.optim import enable_gradient_release
from tests.support.cases import same_bits
from tests.support.processes import on_processes
from tests.support.sharded import case_of, whole
from tests.support.sharded_models import (
    Net,
    average_plain,
    copy_gradients,
    filled,
    in_order,
    sharded,
)
from tests.support.versions import TORCH

KINDS = ["fsdp", "cols", "mixed-precision", "bfloat16", "ignored", "offload", "tied", "tp"]
if TORCH < (2, 7):  # its fully_shard ignores no parameters
    KINDS.remove("ignored")
NAMES = ["adamw", "adafactor", "hf-adafactor", "hf-adafactor-momentum"]
each_case = pytest.mark.parametrize("name", NAMES)
# Relative to the update, and to the weight: sums in another order round some weights to their
# neighbours, which are 6e-8 to 1.2e-7 away.
APART = {torch.float32: (2e-6, 3e-8), torch.bfloat16: (2e-3, 0.0)}


class Pair:
    """A sharded model and a whole one, each with its optimizer."""

    def __init__(self, name, kind):
        self.name, self.own = name, sharded(kind)
        self.model = self.own.model
        self.one, self.first = self.own.one(), self.own.weights()
        case = case_of(name)
        self.optimizer = case.make(list(self.own.named().values()))
        self.other = case.make(in_order(self.own, self.one))

    def backward(self, step):
        self.own.loss(step).backward()
        average_plain(self.own)
        copy_gradients(self.own, self.one)

    def step(self):
        self.optimizer.step()
        self.other.step()
        self.optimizer.zero_grad()

    def assert_near(self):
        for key, found in self.own.weights().items():
            expected = self.one.get_parameter(key).detach()
            assert_near(self.name, key, found, expected, self.first[key])


def assert_near(name, key, found, expected, first):
    if name.startswith("adamw"):
        assert same_bits(found, expected), f"{key} differs by {(found - expected).abs().max()}"
        return
    apart, update = (found.double() - expected.double()).norm(), expected.double() - first.double()
    of_update, of_weight = APART[found.dtype]
    limit = of_update * update.norm() + of_weight * expected.norm()
    assert apart <= limit, f"{key}: {apart / update.norm():.1e} of its update"


@on_processes(2)
@each_case
@pytest.mark.parametrize("kind", KINDS)
def test_fsdp2_and_tensor_parallel_take_the_steps_of_one_process(name, kind):
    pair = Pair(name, kind)
    for step in range(4):
        pair.backward(step)
        pair.step()
    pair.assert_near()


@on_processes(4)
@each_case
@pytest.mark.parametrize("kind", ["fsdp", "hsdp", "fsdp+tp"])
def test_two_ways_of_sharding_together_take_the_steps_of_one_process(name, kind):
    pair = Pair(name, kind)
    if kind == "fsdp+tp":
        placements = {p for param in pair.own.named().values() for p in param.placements}
        assert "_StridedShard" in {type(p).__name__ for p in placements}
    for step in range(4):
        pair.backward(step)
        pair.step()
    pair.assert_near()


@on_processes(2)
@each_case
@pytest.mark.parametrize("zero", [False, True], ids=["ddp", "zero-redundancy"])
def test_replicas_of_whole_parameters_take_the_steps_of_one_process(name, zero):
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    own, one, case = filled(Net()), filled(Net()), case_of(name)
    model = DistributedDataParallel(own)
    optimizer = (
        ZeroRedundancyOptimizer(model.parameters(), case.ours, **case.options)
        if zero
        else case.make(model.parameters())
    )
    other = case.make(one.parameters())
    for step in range(3):
        words = torch.randint(0, 37, (4, 5), generator=torch.Generator().manual_seed(step))
        model(words.roll(dist.get_rank())).square().sum().backward()
        for param, whole_param in zip(own.parameters(), one.parameters(), strict=True):
            whole_param.grad = param.grad.clone()
        optimizer.step()
        other.step()
        optimizer.zero_grad()
    for param, expected in zip(own.parameters(), one.parameters(), strict=True):
        assert same_bits(param, expected)


@on_processes(2)
@each_case
def test_an_optimizer_for_each_parameter_steps_in_backward(name):
    own, case = sharded("fsdp"), case_of(name)
    one, first = own.one(), own.weights()
    optimizers = {param: case.make([param]) for param in own.named().values()}
    others = {key: case.make([one.get_parameter(key)]) for key in own.named()}
    name_of = {param: key for key, param in own.named().items()}

    def step_and_free(param):
        expected = one.get_parameter(name_of[param])
        expected.grad = whole(param.grad).clone()
        optimizers[param].step()
        others[name_of[param]].step()
        param.grad = None

    for param in own.named().values():
        param.register_post_accumulate_grad_hook(step_and_free)
    for step in range(3):
        own.loss(step).backward()
    for key, found in own.weights().items():
        assert_near(name, key, found, one.get_parameter(key).detach(), first[key])


@on_processes(2)
@each_case
def test_gradients_of_shards_are_released_in_backward(name):
    pair = Pair(name, "fsdp")
    name_of = {param: key for key, param in pair.own.named().items()}

    def copy(param):
        pair.one.get_parameter(name_of[param]).grad = whole(param.grad).clone()

    for param in name_of:
        param.register_post_accumulate_grad_hook(copy)
    enable_gradient_release(pair.model, pair.optimizer)
    for step in range(3):
        pair.own.loss(step).backward()
        assert all(param.grad is None for param in name_of)
        pair.optimizer.step()
        pair.other.step()
    pair.assert_near()


@on_processes(2)
@each_case
def test_torch_clips_gradients_that_are_dtensors(name):
    pair = Pair(name, "fsdp")
    for step in range(3):
        pair.backward(step)
        norm = torch.nn.utils.clip_grad_norm_(pair.model.parameters(), 0.05)
        expected = torch.nn.utils.clip_grad_norm_(pair.one.parameters(), 0.05)
        torch.testing.assert_close(whole(norm), expected)
        copy_gradients(pair.own, pair.one)  # the factors may differ in the last place
        pair.step()
    pair.assert_near()


@on_processes(2)
@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm"])
@pytest.mark.parametrize("kind", ["fsdp", "tp"])
def test_the_optimizer_clips_by_norms_over_all_processes(option, kind):
    own = sharded(kind)
    one = own.one()
    options = {"lr": 1e-2, option: 1e-2}
    optimizer = AdamWeightDecay(list(own.named().values()), **options)
    other = AdamWeightDecay(in_order(own, one), **options)
    for step in range(2):
        own.loss(step).backward()
        copy_gradients(own, one)
        optimizer.step()
        other.step()
        for key, param in own.named().items():
            found, expected = whole(param.grad), one.get_parameter(key).grad
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
        optimizer.zero_grad()


@on_processes(2)
@pytest.mark.parametrize("kind", ["fsdp", "mixed-precision", "bfloat16", "tp"])
@pytest.mark.parametrize("name", ["adamw", "hf-adafactor"])
def test_an_accumulator_sums_shards(name, kind):
    pair = Pair(name, kind)
    sums = GradientAccumulator(pair.own.named().items(), scale=0.5)
    others = GradientAccumulator(pair.one.named_parameters(), scale=0.5)
    for step in range(2):
        for micro in range(2):
            pair.backward(2 * step + micro)
            sums()
            others()
        sums.hand_over()
        others.hand_over()
        for key, param in pair.own.named().items():
            grad = param.grad
            if isinstance(param, DTensor):
                assert (grad.device_mesh, grad.placements) == (param.device_mesh, param.placements)
            assert same_bits(whole(grad), pair.one.get_parameter(key).grad)
        pair.optimizer.step()
        pair.other.step()
        sums.reset()
        others.reset()
    pair.assert_near()
