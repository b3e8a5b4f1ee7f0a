"""docs/scripts/fsdp2.py learns, and a resumed run has the losses of one that went on."""

import sys
from pathlib import Path

import torch

from tests.support.processes import on_processes

SCRIPTS = Path(__file__).parents[2] / "docs" / "scripts"
SMALL = ["--width", "32", "--layers", "2", "--rows", "4", "--length", "32"]


@on_processes(2, 4)
def test_sharded_training_learns_and_resumes_with_the_same_losses(tmp_path):
    sys.path.insert(0, str(SCRIPTS))
    import fsdp2

    fsdp2.setup = lambda: torch.device("cpu")  # these processes have met already
    for optimizer in ("adamw", "adafactor"):
        small = [*SMALL, "--optimizer", optimizer, "--lr", "1e-2", "--steps"]
        folder = str(tmp_path / optimizer)
        whole = fsdp2.main([*small, "16"])
        fsdp2.main([*small, "7", "--save", folder])
        rest = fsdp2.main([*small, "16", "--resume", folder])
        assert rest == whole[7:]
        assert sum(whole[-3:]) < 0.9 * sum(whole[:3])
