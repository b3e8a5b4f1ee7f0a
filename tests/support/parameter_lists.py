"""Lists of parameters like those of models, and the optimizers whose cost is counted on them."""

import pytest
import torch

import fusedstep.hf
import fusedstep.optim

OPTIMIZERS = {
    "adamw": lambda params: fusedstep.optim.AdamW(params),
    "adafactor": lambda params: fusedstep.optim.Adafactor(params),
    "hf-adafactor": lambda params: fusedstep.hf.Adafactor(params),
    "hf-adafactor-momentum": lambda params: fusedstep.hf.Adafactor(params, beta1=0.9),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
LISTS = {
    "llama-1b": 8 * [(2048, 2048)] + 3 * [(2048, 5632)] + 4 * [(2048,)],
    "gpt2": [(50257, 768), (1024, 768), *2 * [(768, 2304), (2304,), (768, 3072), (3072,), (768,)]],
    "one embedding": [(32000, 512)],
    "vectors": 10 * [(100_000,)],
    "layers of 256": 24 * [(256, 256), (256,)],
    "convolutions": 6 * [(256, 256, 3, 3), (256,)],
}


def a_list(shapes, dtype):
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.zeros_like(param)
    return params
