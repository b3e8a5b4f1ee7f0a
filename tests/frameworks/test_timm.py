"""timm's own registry with our names: `make test-frameworks` installs it."""

import pytest
import torch

import fusedstep
from fusedstep.optim.by_name import classes

timm_optim = pytest.importorskip("timm.optim")


@pytest.fixture(autouse=True)
def registered():
    fusedstep.register(timm=True)
    yield
    fusedstep.unregister()
    assert timm_optim.list_optimizers("fusedstep*") == []


def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))


def test_every_optimizer_has_a_name_without_an_underscore():
    names = timm_optim.list_optimizers("fusedstep*")
    assert len(names) >= len(classes()) and not any("_" in name for name in names)
    assert "fusedstepadamw" in names


def test_timm_makes_its_groups_and_ours_steps():
    own = timm_optim.create_optimizer_v2(
        model(), "fusedstepadamw", lr=0.1, weight_decay=0.05, eps=1e-6, betas=(0.8, 0.9)
    )
    assert type(own) is fusedstep.optim.AdamW
    assert [group["weight_decay"] for group in own.param_groups] == [0.0, 0.05]
    assert {group["betas"] for group in own.param_groups} == {(0.8, 0.9)}
    ahead = timm_optim.create_optimizer_v2(model(), "lookahead_fusedstepadamw", lr=0.1)
    assert type(ahead) is timm_optim.Lookahead
    assert type(ahead._base_optimizer) is fusedstep.optim.AdamW
    assert type(timm_optim.create_optimizer_v2(model(), "adamw")) is torch.optim.AdamW


@pytest.mark.parametrize("name", ["fusedstep_adamw", "lookahead_fusedstep_adamw"])
def test_a_name_that_would_be_torchs_is_an_error(name):
    with pytest.raises(ValueError, match=r"last underscore.*its own 'adamw'. Write"):
        timm_optim.create_optimizer_v2(model(), name)
    fusedstep.unregister()
    made = timm_optim.create_optimizer_v2(model(), "fusedstep_adamw")  # so timm reads it
    assert type(made) is torch.optim.AdamW
