"""Fused versions of torch.optim's classes. `by_name` makes them from a config, and `param_groups`
decides what decays."""

from ..plan.flat import declare_shard
from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam
from .adamax import Adamax
from .adamw import AdamW
from .asgd import ASGD
from .by_name import by_name, names
from .flat_states import full_state_dict
from .lion import Lion
from .muon import Muon
from .nadam import NAdam
from .param_groups import param_groups
from .radam import RAdam
from .release import enable_gradient_release
from .rmsprop import RMSprop
from .rprop import Rprop
from .sgd import SGD
from .sparse_adam import SparseAdam
from .zero import InZero

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "InZero",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "by_name",
    "declare_shard",
    "enable_gradient_release",
    "full_state_dict",
    "names",
    "param_groups",
]
