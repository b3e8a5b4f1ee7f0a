"""Instructions for each element in the hot loops of the machine code, from the budgets. Issue slots
are what a loop runs out of next, once it is near the speed of memory."""

import re
from pathlib import Path

import pytest

from fusedstep.rules.spec import LARGE_MODELS
from tests.support.budgets import CUDA as BUDGETS

VECTOR = 16  # bytes of a load
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# The most instructions for each element, those of rare cases included: a gradient scale other than
# 1, slow quotients, other dtypes of moments. A number falls when a loop gets better.
MOST = {
    "STATISTICS -/bf16/-": 10.5,
    "STATISTICS -/bf16/- x2": 11.5,
    "STATISTICS -/bf16/- x3": 15.5,
    "STATISTICS -/bf16/- x4": 14.5,
    "STATISTICS -/fp16/-": 11,
    "STATISTICS -/fp32/-": 14.5,
    "UPDATE bf16/bf16/-": 15,
    "UPDATE fp16/fp16/-": 15,
    "UPDATE fp32/fp32/-": 15,
    "SUM_U2 -/bf16/-": 10.5,
    "SQUARES bf16/-/-": 5,
    "adamw bf16/bf16/bf16": 53,
    "adamw fp32/fp32/fp32": 51,
}


def elements(kernel, loads):
    """Elements of a thread in a pass of its loop: every tensor is loaded in vectors of one size."""
    kind, dtypes = kernel.split()[:2]
    read = [name for name in dtypes.split("/") if name != "-"]
    tensors = len(read) + (kind == "adamw")  # two states of one dtype
    return loads / tensors * VECTOR / BYTES[read[0]]


# Of kernels for other ways of storage. A thread of them has 8 elements. What it executes seldom
# counts as well: the ends of runs of noise, tensors that are not aligned.
MOST_OF_STORED = {
    "adamw noisy/bf16/noisy": 139,
    "adamw rest16/bf16/bf16": 60,
    "adamw rest8/bf16/bf16": 66,
    "adamw bf16/bf16/int8": 111,
    "adamw rest8/bf16/int8": 136,
    "UPDATE noisy/bf16/-": 70,
}


@pytest.mark.parametrize("kernel", MOST_OF_STORED)
def test_a_hot_loop_for_other_ways_of_storage_has_few_instructions_for_each_element(kernel):
    found = BUDGETS.of(kernel, "loop") / 8
    assert MOST_OF_STORED[kernel] / 1.25 < found <= MOST_OF_STORED[kernel], f"{found:.1f}"


@pytest.mark.parametrize("kernel", MOST)
def test_a_hot_loop_has_few_instructions_for_each_element(kernel):
    loop, loads = (BUDGETS.of(kernel, what) for what in ("loop", "loop loads"))
    found = loop / elements(kernel, loads)
    assert MOST[kernel] / 1.25 < found <= MOST[kernel], f"{found:.1f}: {loop} for {loads} loads"


def test_the_second_read_has_kernels_for_the_dtypes_of_large_models():
    source = Path(__file__).parents[2] / "csrc" / "cuda" / "factored.cu"
    (listed,) = re.findall(r"using UpdateDtypes =(.*?);", source.read_text(), re.DOTALL)
    found = re.findall(r"Dtypes<k(\w+), k(\w+), k(\w+)>", listed)
    wanted = {(p, g, momentum) for p, g, m in LARGE_MODELS for momentum in ("none", m)}
    assert len(found) == len(wanted)
    assert {tuple(map(str.lower, dtypes)) for dtypes in found} == wanted
