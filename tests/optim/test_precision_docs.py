"""Every example of docs/precision.md runs, and its table is true."""

import re
from pathlib import Path

import pytest
import torch

from fusedstep.optim import Adafactor, AdamW

PAGE = (Path(__file__).parents[2] / "docs" / "precision.md").read_text()


def test_its_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 5
    names = {}
    for block in blocks:
        exec(compile(block, "docs/precision.md", "exec"), names)
    shown = re.findall(r"^# (\[.*\])$", PAGE, re.MULTILINE)
    assert capsys.readouterr().out.split("\n")[:-1] == shown


def bytes_a_parameter(kind, **options):
    param = torch.nn.Parameter(torch.ones(1024, 1024, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    optimizer = kind([param], **options)
    optimizer.step()
    held = [param, param.grad, *optimizer.state[param].values()]
    return sum(tensor.nbytes for tensor in held if tensor.dim()) / param.numel()


@pytest.mark.parametrize(
    ("line", "said"), re.findall(r"^\| .* \| `(.*)` \| ([\d.]+) \|$", PAGE, re.MULTILINE)
)
def test_its_bytes_of_adamw(line, said):
    options = eval(f"dict({line})", {"torch": torch})
    assert bytes_a_parameter(AdamW, **options) == pytest.approx(float(said), abs=0.05)


def test_its_bytes_of_adafactor():
    found = re.findall(r"`(\w+=\w+)` (?:takes )?([\d.]+)(?: bytes)?[,.]", PAGE)
    assert len(found) == 3
    for line, said in found:
        options = eval(f"dict({line})", {})
        assert bytes_a_parameter(Adafactor, **options) == pytest.approx(float(said), abs=0.01)
