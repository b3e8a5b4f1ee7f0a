"""Optimizers by name: every class is found by itself, and what is not known is an error."""

import pytest
import torch

import fusedstep.hf
import fusedstep.optim
from fusedstep.optim import by_name, names
from fusedstep.optim.by_name import classes, find

OWN = {
    (package.__name__.split(".")[1], name): kind
    for package in (fusedstep.optim, fusedstep.hf)
    for name, kind in vars(package).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if name != "InZero"
}


def test_every_optimizer_has_a_name():
    assert set(classes().values()) == set(OWN.values())
    assert set(names()) == set(classes()) and len(names()) == len(OWN)


@pytest.mark.parametrize(("folder", "name"), OWN)
@pytest.mark.filterwarnings("ignore:transformers has removed this AdamW")
def test_a_name_may_be_written_in_many_ways(folder, name):
    full = f"{folder}.{name}"
    for spelled in (full, full.upper(), full.replace(".", "_"), full.replace(".", "").lower()):
        assert find(spelled) is OWN[folder, name]
    made = by_name(full, torch.nn.Linear(4, 4, bias=False))
    assert type(made) is OWN[folder, name]
    if folder == "optim":
        assert find(name.lower()) is OWN[folder, name]


def test_a_new_optimizer_is_found_by_itself(monkeypatch):
    class NewOne(fusedstep.optim.AdamW):
        def __init__(self, params, lr=1e-3, tempo=1.0):
            super().__init__(params, lr)

    monkeypatch.setattr(fusedstep.optim, "NewOne", NewOne, raising=False)
    monkeypatch.setattr(fusedstep.optim, "__all__", [*fusedstep.optim.__all__, "NewOne"])
    assert type(by_name("new_one", torch.nn.Linear(2, 2), tempo=2.0)) is NewOne
    with pytest.raises(TypeError, match=r"'NewOne' has no argument 'temp' .did you mean 'tempo'"):
        by_name("newone", torch.nn.Linear(2, 2), temp=2.0)


def test_a_module_gives_what_requires_a_gradient():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    made = by_name("adamw", model, lr="1e-2", weight_decay=0)
    assert made.param_groups[0]["params"] == [*model[1].parameters()]
    assert made.param_groups[0]["lr"] == 0.01
    groups = [{"params": [model[0].weight], "lr": 1.0}, {"params": [model[1].weight]}]
    assert [g["lr"] for g in by_name("AdamW", groups, lr=0.5).param_groups] == [1.0, 0.5]
    with pytest.raises(ValueError, match="Linear has no parameter that requires a gradient"):
        by_name("adamw", model[0])


@pytest.mark.parametrize(
    ("name", "settings", "error", "said"),
    [
        ("adaamw", {}, ValueError, "should be one of .* but is: 'adaamw' .did you mean 'AdamW'"),
        ("hf.adafacto", {}, ValueError, "did you mean 'hf.Adafactor'"),
        (3, {}, ValueError, "but is: 3"),
        ("adamw", {"learning_rate": 1}, TypeError, "no argument 'learning_rate' .* mean 'lr'"),
        ("adamw", {"weightdecay": 1}, TypeError, "did you mean 'weight_decay'.*arguments are: lr"),
    ],
)
def test_what_is_not_known_is_an_error_with_the_nearest_name(name, settings, error, said):
    with pytest.raises(error, match=said):
        by_name(name, torch.nn.Linear(2, 2), **settings)
