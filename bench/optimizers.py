"""The optimizers that we race: one entry each, and nothing else to add anywhere.

An entry names ours, its settings and its peers. Its bytes follow from the rule's states, its rows
from the peers, its lists from the shapes in `lists.py`.
"""

from typing import Any

from bench.providers import COMPILED, DEEPSPEED, ONLY_ASKED, Entry, Training, by_torch, lazily

# What transformers' Trainer passes for optim="adafactor".
TRAINER: dict[str, Any] = {"lr": 1e-3, "scale_parameter": False, "relative_step": False}
# They share names of settings and defaults, except that the last one has momentum by default.
LIKE_TRANSFORMERS = {
    "transformers": lazily("transformers.optimization", "Adafactor"),
    "adafactor8bit": lazily("adafactor8bit", "Adafactor8Bit"),
    "pytorch-optimizer": lazily("pytorch_optimizer", "AdaFactor", betas=(None, 0.999)),
}
CPU_ADAM = ("deepspeed.ops.adam", "DeepSpeedCPUAdam")

# torch's other elementwise optimizers: class, rule, settings for ours and torch's, torch's ways.
FOREACH = ("torch-foreach", "torch-plain")
CAPTURABLE = (*FOREACH, "torch-capturable", COMPILED)
OF_TORCH: tuple[tuple[str, str, dict[str, Any], tuple[str, ...]], ...] = (
    ("Adam", "adam", {"weight_decay": 0.01}, ("torch-fused", *CAPTURABLE)),
    ("SGD", "sgd_momentum", {"momentum": 0.9}, ("torch-fused", *FOREACH, COMPILED)),
    ("NAdam", "nadam", {}, CAPTURABLE),
    ("RAdam", "radam", {}, CAPTURABLE),
    ("Adamax", "adamax", {}, CAPTURABLE),
    ("RMSprop", "rmsprop", {}, CAPTURABLE),
    ("Adagrad", "adagrad", {}, ("torch-fused", *FOREACH, COMPILED)),
    ("Adadelta", "adadelta", {}, CAPTURABLE),
    ("ASGD", "asgd", {}, CAPTURABLE),
    ("Rprop", "rprop", {}, CAPTURABLE),
)
# Their walkers are AdamW's, so two lists show what is their own: bytes, and the time of the host.
FEW_LISTS = ("10x8M", "tiny", "1e9", "2000 small")

RULES = {
    "adamw": Entry(
        "AdamW",
        rule="adamw",
        ours="fusedstep.optim.AdamW",
        settings={"lr": 1e-3, "weight_decay": 0.01},  # some peers have no decay by default
        peers={
            **by_torch("AdamW", "torch-fused", "torch-foreach", "torch-plain"),
            **by_torch("AdamW", "torch-capturable", COMPILED),
            "optimi": lazily("optimi", "AdamW"),
            "flashoptim": lazily("flashoptim", "FlashAdamW"),
            "torchao": lazily("torchao.optim", "_AdamW"),
            "torchao-8bit": lazily("torchao.optim", "AdamW8bit"),
            "torchao-4bit": lazily("torchao.optim", "AdamW4bit"),
            "bitsandbytes": lazily("bitsandbytes.optim", "AdamW"),
            "bitsandbytes-8bit": lazily("bitsandbytes.optim", "AdamW8bit"),
            "apex": lazily("apex.optimizers", "FusedAdam"),
            "transformer-engine": lazily("transformer_engine.pytorch.optimizers", "FusedAdam"),
            # It never updates a transposed parameter, because it steps on a copy. No list has one.
            "deepspeed-cpu": lazily(*CPU_ADAM),
            "deepspeed-cpu-low-states": lazily(*CPU_ADAM, fp32_optimizer_states=False),
        },
        capturable=True,
        on_models=True,
        training=Training(lr=3e-3, against="torch-fused"),
    ),
    "adafactor-hf-trainer": Entry(
        "Adafactor, transformers' (Trainer's settings)",
        rule="adafactor",
        ours="fusedstep.hf.Adafactor",
        settings=TRAINER,
        peers=LIKE_TRANSFORMERS,
        on_models=True,
        training=Training(lr=3e-3, name="hf-adafactor-trainer"),
    ),
    "adafactor-hf-defaults": Entry(
        "Adafactor, transformers' (defaults)",
        rule="adafactor",
        ours="fusedstep.hf.Adafactor",
        peers=LIKE_TRANSFORMERS,
        training=Training(lr=None, name="hf-adafactor"),
    ),
    "adafactor-torch": Entry(
        "Adafactor, torch's",
        rule="adafactor",
        ours="fusedstep.optim.Adafactor",
        peers=by_torch("Adafactor", "torch-foreach", "torch-plain", COMPILED),
        capturable=True,
        training=Training(lr=3e-2, against="torch-plain", name="adafactor"),
    ),
    **{
        name.lower(): Entry(
            name,
            rule=rule,
            ours=f"fusedstep.optim.{name}",
            settings=settings,
            peers=by_torch(name, *ways),
            capturable="torch-capturable" in ways,
            lists=FEW_LISTS,
            training=None,
        )
        for name, rule, settings, ways in OF_TORCH
    },
    # The floor has the bytes of both walks over memory, and no products.
    "muon": Entry(
        "Muon",
        rule="muon_average",
        ours="fusedstep.optim.Muon",
        settings={"lr": 1e-3},
        peers={"torch-plain": lazily("torch.optim", "Muon")},
        only_matrices=True,
        training=None,
    ),
    "lion": Entry(
        "Lion",
        rule="lion",
        ours="fusedstep.optim.Lion",
        settings={"lr": 1e-4},
        peers={
            "optimi": lazily("optimi", "Lion"),
            "pytorch-optimizer": lazily("pytorch_optimizer", "Lion"),
            "bitsandbytes": lazily("bitsandbytes.optim", "Lion"),
        },
        capturable=True,
        lists=FEW_LISTS,
        training=None,
    ),
}

# Public optimizers that we do not race, and why.
NOT_RACED = {
    "fusedstep.optim.SparseAdam": "it is torch's own step",
    "fusedstep.hf.AdamW": "transformers has none since version 5; a step costs as much as AdamW's",
    "fusedstep.optim.InZero": "it is no optimizer by itself: it cuts what another one steps on",
    "fusedstep.hf.AdamWeightDecay": "its peer was written for TensorFlow; it is hf.AdamW's step",
}

PROVIDERS = tuple(dict.fromkeys(name for entry in RULES.values() for name in entry.providers))
ABSENT = {
    name for entry in RULES.values() for name, peer in entry.peers.items() if peer.is_absent()
}
# Raced on this machine unless --providers says otherwise.
HERE = tuple(name for name in PROVIDERS if name not in ONLY_ASKED | ABSENT)
# What `--providers installed` stands for.
INSTALLED = tuple(name for name in PROVIDERS if name in HERE or name in {*DEEPSPEED} - ABSENT)
