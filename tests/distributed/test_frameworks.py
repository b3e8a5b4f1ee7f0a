"""Loops of frameworks on top of FSDP2. Each runs where its package is installed."""

import importlib.util
import os

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from tests.support.cases import same_bits
from tests.support.processes import on_processes
from tests.support.sharded import case_of, whole
from tests.support.sharded_models import Sharded, copy_gradients, in_order, model_of, sharded

NAMES = ["adamw", "adafactor", "hf-adafactor"]
each_case = pytest.mark.parametrize("name", NAMES)


def needs(package):
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"{package} is not installed")


class Loop:
    """As torchtitan trains: FSDP2, a schedule, clipping, flat checkpoints, names in the groups."""

    flat = StateDictOptions(flatten_optimizer_state_dict=True)

    def __init__(self, name):
        self.own, self.step = sharded("fsdp"), 0
        named = list(self.own.named().items())
        group = {"params": [p for _, p in named], "param_names": [key for key, _ in named]}
        case = case_of(name)
        self.optimizer = case.make([group])
        warm = torch.optim.lr_scheduler.LambdaLR
        self.schedule = warm(self.optimizer, lambda step: min(1.0, (step + 1) / 4))

    def train(self, steps):
        for _ in range(steps):
            self.own.loss(self.step).backward()
            torch.nn.utils.clip_grad_norm_(self.own.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.step += 1
        return self.own.weights()

    def state_dict(self):
        model = self.own.model
        return {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, self.optimizer, options=self.flat),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
        }

    def load(self, folder):
        made = self.state_dict()
        dcp.load(made, checkpoint_id=folder)
        model = self.own.model
        set_model_state_dict(model, made["model"])
        set_optimizer_state_dict(model, self.optimizer, made["optimizer"], options=self.flat)
        self.schedule.load_state_dict(made["schedule"])
        self.step = made["step"]


@on_processes(2)
@pytest.mark.parametrize("name", ["adamw", "adafactor", "hf-adafactor-trainer"])
def test_a_loop_as_torchtitans_is_resumed_with_the_same_bits(name, tmp_path):
    first, second = Loop(name), Loop(name)
    first.train(3)
    dcp.save(first.state_dict(), checkpoint_id=tmp_path)
    second.load(tmp_path)
    expected = first.train(3)
    for key, found in second.train(3).items():
        assert same_bits(found, expected[key]), key


@needs("accelerate")
@on_processes(2)
@each_case
def test_accelerate_shards_the_model_and_the_optimizer_follows(name):
    """accelerate makes DTensors of the parameters, and puts them into the optimizer's groups. It
    takes FSDP2 for GPUs only, so the test says that this is one."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True)
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    for state in (PartialState._shared_state, AcceleratorState._shared_state):
        state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    case, one = case_of(name), model_of("fsdp")
    model = model_of("fsdp")
    optimizer = case.make(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    own = Sharded("fsdp", model, dist.get_rank(), dist.get_world_size())
    assert all(isinstance(param, DTensor) for param in own.named().values())
    first = own.weights()
    other = case.make(in_order(own, one))
    for step in range(3):
        accelerator.backward(own.loss(step))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        copy_gradients(own, one)
        optimizer.step()
        other.step()
        optimizer.zero_grad()
    for key, found in own.weights().items():
        expected = one.get_parameter(key).detach()
        update = (expected - first[key]).norm()
        apart = 0.0 if name == "adamw" else 2e-6 * update + 3e-8 * expected.norm()
        assert (found - expected).norm() <= apart, key
    AcceleratorState._reset_state(True)


@needs("lightning")
@on_processes(2)
@each_case
def test_lightnings_model_parallel_strategy_takes_the_steps_of_one_process(name, tmp_path):
    import lightning
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    case, one, gradients = case_of(name), model_of("fsdp"), []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model_of("fsdp")
            self.own = None

        def configure_model(self):
            if self.own is None:
                mesh = self.device_mesh["data_parallel"]
                for part in (self.net.up, self.net.out, self.net):
                    fully_shard(part, mesh=mesh)
                self.own = Sharded("fsdp", self.net, mesh.get_local_rank(), mesh.size())

        def training_step(self, batch, index):
            return self.own.loss(index)

        def on_before_optimizer_step(self, optimizer):
            gradients.append({key: whole(p.grad).clone() for key, p in self.own.named().items()})

        def configure_optimizers(self):
            return case.make(self.net.parameters())

    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(LOCAL_RANK=rank, NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    os.environ.update(RANK=rank, WORLD_SIZE=size)
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_steps=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(8, 1), batch_size=1))
    first = {key: p.detach().clone() for key, p in one.named_parameters()}
    other = case.make([one.get_parameter(key) for key in module.own.named()])
    for own in gradients:
        for key, grad in own.items():
            one.get_parameter(key).grad = grad
        other.step()
    assert len(gradients) == 3
    for key, found in module.own.weights().items():
        expected = one.get_parameter(key).detach()
        update = (expected - first[key]).norm()
        apart = 0.0 if name == "adamw" else 2e-6 * update + 3e-8 * expected.norm()
        assert (found - expected).norm() <= apart, key
