"""Converts a checkpoint of one optimizer for another that keeps the same moments in other ways.

    torch's Adafactor           row_var (.., n, 1), col_var (.., 1, m), or variance; step: a tensor
    transformers' Adafactor     exp_avg_sq_row (.., n), exp_avg_sq_col (.., m), or exp_avg_sq;
                                exp_avg, the momentum, if beta1 is given; RMS of the parameter;
                                step: an int
    torch's AdamW               exp_avg, exp_avg_sq, max_exp_avg_sq if amsgrad; step: a tensor
    transformers' AdamW         exp_avg, exp_avg_sq; step: an int

Both Adafactors hold running means of g^2 with the decay 1 - t^-0.8, and both AdamWs those of g and
g^2, so nothing is computed again. fusedstep's classes have the keys of the class that they mirror.
With `state_dtype="int8"` a state has codes and a companion `KEY_scale`: it becomes float32.
With `master_weights` there is `master_rest` or `master`, which only fusedstep keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .plan.storage import COPY, REST, SCALE
from .stored_numbers import from_blocks, in_blocks

State = dict[str, Any]


class Dialect(NamedTuple):
    """How the optimizers of a family keep their states in a package."""

    package: str
    family: str
    keys: dict[str, str]  # what a state is -> its key here
    steps_are_tensors: bool
    # Moments of rows and columns with a size of 1 for the dimension that they are means over.
    keeps_dimensions: bool = False
    has_rms: bool = False


TORCH = Dialect(
    "torch",
    "Adafactor",
    {"row": "row_var", "col": "col_var", "vector": "variance"},
    steps_are_tensors=True,
    keeps_dimensions=True,
)
OF_MATRICES = {"row": "exp_avg_sq_row", "col": "exp_avg_sq_col"}
TRANSFORMERS = Dialect(
    "transformers",
    "Adafactor",
    {**OF_MATRICES, "vector": "exp_avg_sq", "momentum": "exp_avg"},
    steps_are_tensors=False,
    has_rms=True,
)
ADAM = {"mean": "exp_avg", "square": "exp_avg_sq", "maximum": "max_exp_avg_sq"}
TORCH_ADAMW = Dialect("torch", "AdamW", ADAM, steps_are_tensors=True)
TRANSFORMERS_ADAMW = Dialect("transformers", "AdamW", ADAM, steps_are_tensors=False)

DIALECTS = {
    (dialect.package, dialect.family): dialect
    for dialect in (TORCH, TRANSFORMERS, TORCH_ADAMW, TRANSFORMERS_ADAMW)
}
# The packages that fusedstep mirrors, and a class with a name of its own.
MIRRORED = {"fusedstep.optim": "torch", "fusedstep.hf": "transformers"}
FAMILIES = {"AdamWeightDecay": "AdamW"}
# The dimension that moments of rows and columns are means over.
OVER = {"row": -1, "col": -2}
# The state that only an option adds, and whether a group has this option.
OPTIONAL: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "Adafactor": ("momentum", lambda group: group.get("beta1") is not None),
    "AdamW": ("maximum", lambda group: bool(group.get("amsgrad"))),
}


def convert(
    state_dict: Mapping[str, Any], optimizer: torch.optim.Optimizer, *, lossy: bool = False
) -> dict[str, Any]:
    """The state dict that `optimizer` can load, with the moments and step counts of `state_dict`.

    Adafactors of torch, transformers and fusedstep can take over from each other, and so can their
    AdamWs. Hyper-parameters stay those of `optimizer`, because they mean different things in
    different packages. Its ``load_state_dict`` chooses the dtypes, as always.

    Arguments:
        state_dict: as ``state_dict()`` of one of these classes made it.
        optimizer: with the same parameters in the same groups, in the same order.
        lossy: drops what `optimizer` does not keep (a momentum, the maximum of amsgrad, master
            weights), and starts with zeros what it keeps and `state_dict` lacks. By default both
            are errors.

    Example:
        >>> import fusedstep.hf, fusedstep.optim
        >>> model = torch.nn.Linear(8, 8)
        >>> old = fusedstep.optim.Adafactor(model.parameters())
        >>> model(torch.ones(8)).sum().backward()
        >>> old.step()
        >>> new = fusedstep.hf.Adafactor(model.parameters())
        >>> new.load_state_dict(convert(old.state_dict(), new))
    """
    target = dialect_of(optimizer)
    groups, own = groups_of(state_dict), optimizer.state_dict()["param_groups"]
    given, wanted = ([len(group["params"]) for group in found] for found in (groups, own))
    if given != wanted:
        raise ValueError(
            f"state_dict has groups of {given} parameters, and optimizer has groups of {wanted}. "
            "Make optimizer with the same groups."
        )
    params = [group["params"] for group in optimizer.param_groups]
    has_masters = bool(getattr(optimizer, "master_weights", False))
    return {
        "state": converted_states(state_dict, target, own, lossy, params, has_masters),
        "param_groups": own,
    }


def converted_states(
    state_dict: Mapping[str, Any],
    target: Dialect,
    groups: list[dict[str, Any]],
    lossy: bool,
    params: list[list[Tensor]] | None = None,
    has_masters: bool = False,
) -> dict[Any, State]:
    """The states of `state_dict` in another dialect, for groups with the target's options. Without
    `params` no RMS is known: the next step makes it. `has_masters` tells whether the target keeps
    master weights."""
    states = {}
    option, is_on = OPTIONAL[target.family]
    for index, (old, new) in enumerate(zip(groups_of(state_dict), groups, strict=True)):
        wants = {option} if is_on(new) else set()
        for number, place in enumerate(old["params"]):
            state = state_dict["state"].get(place)
            if not state:
                continue
            where = f"parameter {number} of group {index}"
            made = states[new["params"][number]] = _converted(state, target, wants, where, lossy)
            made |= _masters(state, where, lossy, has_masters)
            if target.has_rms:
                made["RMS"] = _rms(params[index][number]) if params else torch.zeros(())
    return states


def dialect_of(optimizer: torch.optim.Optimizer) -> Dialect:
    """Subclasses keep states as their base does."""
    for kind in type(optimizer).__mro__:
        module = kind.__module__
        mirrored = (package for own, package in MIRRORED.items() if module.startswith(own))
        package = next(mirrored, module.partition(".")[0])
        family = FAMILIES.get(kind.__name__, kind.__name__)
        if (package, family) in DIALECTS:
            return DIALECTS[package, family]
    raise TypeError(
        "optimizer should be an Adafactor or AdamW of torch, transformers or fusedstep but is: "
        f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    )


def groups_of(state_dict: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            "state_dict should be a dict with 'state' and 'param_groups', as "
            f"optimizer.state_dict() makes it, but is a {type(state_dict).__name__} of "
            f"{', '.join(map(repr, state_dict)) if isinstance(state_dict, Mapping) else state_dict}"
        )
    groups: list[dict[str, Any]] = state_dict["param_groups"]
    return groups


def _converted(old: State, target: Dialect, wants: set[str], where: str, lossy: bool) -> State:
    """One parameter's state in the target's dialect."""
    source, found = read(old, where)
    if source.family != target.family:
        raise ValueError(
            f"state_dict: {where} has a state of {source.family}, and optimizer is "
            f"{target.family}: their moments are other numbers. Start without a state."
        )
    option, _ = OPTIONAL[target.family]
    if option in found and option not in wants:
        if not lossy:
            raise ValueError(
                f"state_dict: {where} has '{source.keys[option]}', which optimizer does not keep. "
                "Give optimizer the option that keeps it, or drop it with lossy=True."
            )
        del found[option]
    for name in wants - found.keys():
        if not lossy:
            raise ValueError(
                f"optimizer keeps '{target.keys[name]}', and state_dict has none for {where}. "
                "Leave out the option that keeps it, or start with zeros by lossy=True."
            )
        found[name] = _zeros(found)
    step = old["step"]
    if target.steps_are_tensors:
        step = step.clone() if isinstance(step, Tensor) else torch.tensor(float(step))
    else:
        step = int(step)
    if target.keeps_dimensions:
        found |= {name: found[name].unsqueeze(dim) for name, dim in OVER.items() if name in found}
    return {"step": step, **{target.keys[name]: value for name, value in found.items()}}


def _masters(old: State, where: str, lossy: bool, is_kept: bool) -> State:
    """The master weight of a parameter, if it has one."""
    found = {key: old[key] for key in (REST, COPY) if key in old}
    if found and not is_kept:
        if not lossy:
            raise ValueError(
                f"state_dict: {where} has a master weight '{next(iter(found))}', which optimizer "
                "does not keep. Save the weights with master_state_dict(), then drop it here with "
                "lossy=True; or give optimizer master_weights."
            )
        return {}
    return found


def read(state: State, where: str) -> tuple[Dialect, dict[str, Tensor]]:
    """Who wrote a state, and its moments, without dimensions of size 1 that others do not keep."""
    if "RMS" in state:
        dialect = TRANSFORMERS
    elif "row_var" in state or "variance" in state:
        dialect = TORCH
    elif "exp_avg" in state and "exp_avg_sq" in state:
        dialect = TORCH_ADAMW  # all AdamWs have these keys
    else:
        raise ValueError(
            f"state_dict: {where} has a state of {', '.join(map(repr, state))}, which no Adafactor "
            "or AdamW of torch, transformers or fusedstep has"
        )
    found = {name: _numbers(state, key) for name, key in dialect.keys.items() if key in state}
    if dialect.keeps_dimensions:
        found |= {name: found[name].squeeze(dim) for name, dim in OVER.items() if name in found}
    return dialect, found


def _numbers(state: State, key: str) -> Tensor:
    """A state's numbers: in float32 if it has codes of 8 bits."""
    value: Tensor = state[key]
    if key + SCALE not in state:
        return value
    numbers = from_blocks(in_blocks(value.contiguous()), state[key + SCALE].reshape(-1, 1))
    return numbers.view(value.shape)


def _zeros(found: dict[str, Tensor]) -> Tensor:
    """As large as the parameter."""
    if "row" in found:
        return found["row"].new_zeros((*found["row"].shape, found["col"].shape[-1]))
    return torch.zeros_like(found["vector"] if "vector" in found else found["square"])


def _rms(param: Tensor) -> Tensor:
    return param.detach().float().square().mean().sqrt() if param.numel() else torch.zeros(())
