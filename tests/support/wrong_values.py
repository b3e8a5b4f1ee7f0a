"""Wrong values of hyper-parameters, for each optimizer, and what the error says."""

import math

import torch

import fusedstep.hf
import fusedstep.optim

nan = math.nan
ADAMW, ADAFACTOR = fusedstep.optim.AdamW, fusedstep.optim.Adafactor
OLD_ADAMW, WEIGHT_DECAY = fusedstep.hf.AdamW, fusedstep.hf.AdamWeightDecay
HF = fusedstep.hf.Adafactor
BETAS = [
    ("betas", (1.5, 0.9), r"betas\[0\] should be 0 or more and below 1 but is: 1.5"),
    ("betas", (0.9, 1.0), r"betas\[1\] should be 0 or more and below 1 but is: 1.0"),
    ("betas", (0.9, nan), r"betas\[1\] should be a number but is: nan"),
    ("betas", (0.9,), r"betas should be two numbers but is: \(0.9,\)"),
    ("betas", 0.9, "betas should be two numbers but is: 0.9"),
]
LR = [
    ("lr", nan, "lr should be a number but is: nan"),
    ("lr", -0.1, "lr should be 0 or more but is: -0.1"),
    ("lr", "fast", "lr should be a number but is: 'fast'"),
    ("lr", torch.tensor([0.1, 0.2]), r"lr should be one number but is: a tensor of shape \(2,\)"),
    ("lr", torch.tensor(nan), "lr should be a number but is: nan"),
    ("lr", torch.tensor(-1.0), r"lr should be 0 or more but is: "),
]
EPS = [
    ("eps", 1e-8, "eps should be two numbers but is: 1e-08"),
    ("eps", (-1.0, 1e-3), r"eps\[0\] should be 0 or more but is: -1.0"),
    ("eps", (1e-30, nan), r"eps\[1\] should be a number but is: nan"),
]
DECAY = [("weight_decay", nan, "weight_decay should be a number but is: nan")]
NO_DECAY = [("weight_decay", -0.1, "weight_decay should be 0 or more but is: -0.1")]
SMALL = [("eps", -1.0, "eps should be 0 or more but is: -1.0"), ("eps", None, "eps should be one")]
CENTERED = [("alpha", -0.1, "alpha should be 0 or more"), ("momentum", nan, "momentum should be a")]
OPTIM = fusedstep.optim
# The checks are the same for all, so most optimizers have a few of the values.
WRONG = {
    OPTIM.Adam: [*LR[:2], *BETAS[:2], *NO_DECAY, SMALL[0]],
    OPTIM.Lion: [*LR[:2], *BETAS[:2], *NO_DECAY],
    OPTIM.RMSprop: [*LR[:2], *NO_DECAY, SMALL[0], *CENTERED],
    OPTIM.Adagrad: [*LR[:2], *NO_DECAY, SMALL[0], ("lr_decay", -1.0, "lr_decay should be 0 or")],
    OPTIM.Adadelta: [*LR[:2], *NO_DECAY, SMALL[0], ("rho", 1.1, "rho should be from 0 to 1")],
    OPTIM.Adamax: [*LR[:2], *BETAS[:2], *NO_DECAY, SMALL[0]],
    OPTIM.RAdam: [*LR[:2], *BETAS[:2], *NO_DECAY, SMALL[0]],
    OPTIM.SGD: [
        *LR[:2],
        *NO_DECAY,
        ("momentum", -0.1, "momentum should be 0 or more but is: -0.1"),
        ("dampening", nan, "dampening should be a number but is: nan"),
    ],
    OPTIM.Rprop: [
        *LR[:2],
        ("etas", (1.0, 1.2), r"etas\[0\] should be above 0 and below 1 but is: 1.0"),
        ("etas", (0.5, 1.0), r"etas\[1\] should be above 1 but is: 1.0"),
        ("step_sizes", (0.0, nan), r"step_sizes\[1\] should be a number but is: nan"),
    ],
    OPTIM.NAdam: [
        *LR[:2],
        *BETAS[:2],
        *NO_DECAY,
        SMALL[0],
        ("momentum_decay", -1.0, "momentum_decay should be 0 or more but is: -1.0"),
    ],
    OPTIM.Muon: [
        *LR[:2],
        *NO_DECAY,
        SMALL[0],
        ("momentum", -0.1, "momentum should be 0 or more but is: -0.1"),
    ],
    OPTIM.ASGD: [
        *LR[:2],
        *NO_DECAY,
        ("lambd", -1.0, "lambd should be 0 or more but is: -1.0"),
        ("t0", nan, "t0 should be a number but is: nan"),
    ],
    ADAMW: [*LR, *BETAS, *DECAY, *NO_DECAY, *SMALL, ("lr", None, "lr should be one number")],
    OLD_ADAMW: [*LR, *BETAS, *DECAY, *SMALL],
    WEIGHT_DECAY: [*LR, *BETAS, *DECAY, *SMALL],
    ADAFACTOR: [
        *LR,
        *EPS,
        *DECAY,
        *NO_DECAY,
        ("beta2_decay", 0.5, "beta2_decay should be 0 or less but is: 0.5"),
        ("beta2_decay", nan, "beta2_decay should be a number but is: nan"),
        ("d", 0.5, "d should be 1 or more but is: 0.5"),
    ],
    HF: [
        *LR,
        *EPS,
        *DECAY,
        ("eps", (None, 1e-3), r"eps\[0\] should be one number but is: None"),
        ("clip_threshold", 0.0, "clip_threshold should be above 0 but is: 0.0"),
        ("clip_threshold", nan, "clip_threshold should be a number but is: nan"),
        ("decay_rate", 0.8, "decay_rate should be 0 or less but is: 0.8"),
        ("beta1", 1.5, "beta1 should be 0 or more and below 1 but is: 1.5"),
        ("beta1", nan, "beta1 should be a number but is: nan"),
    ],
}
