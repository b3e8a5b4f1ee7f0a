"""How an optimizer stores its numbers: dtypes of states, master weights, noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..plan import shards
from ..plan.layouts import FLOATS
from ..plan.storage import COPY, REST, SCALE
from ..plan.whole_places import places_of
from ..rules.layout import SCALED_BLOCK
from ..rules.noise import tensor_key
from .declared import DeclaredOptimizer, Group, State
from .precision import Precision

LEAST_IN_BLOCKS = 4096  # elements: smaller tensors are not worth scales


class StoredOptimizer(DeclaredOptimizer):
    """Says how parameters and states are stored, beside what a subclass declares."""

    precision = Precision()
    # What follows from it, because a plan asks for each parameter.
    _has_options = False  # whether something is not at its default
    _has_companions = False  # whether a parameter may have more states than its rule
    # The states that are never below 0.
    squares: frozenset[str] = frozenset()

    def _set_precision(self, precision: Precision) -> None:
        self.precision = precision
        self._has_options = bool(self._options_given())
        self._has_companions = bool(precision.master_weights) or precision.state_dtype == "int8"

    @property
    def state_dtype(self) -> torch.dtype | str | None:
        """What the states are stored in, if not as the peer's."""
        return self.precision.state_dtype

    @property
    def master_weights(self) -> bool | int:
        """Whether 16-bit parameters have master weights."""
        return self.precision.master_weights

    @property
    def stochastic_rounding(self) -> bool:
        """Whether bfloat16 numbers are rounded by noise."""
        return self.precision.stochastic_rounding

    @property
    def seed(self) -> int:
        """The seed of the noise."""
        return self.precision.seed

    # Dtypes.

    def _number_dtype(self, param: Tensor) -> torch.dtype:
        """The dtype of what a step updates: float32 if there is a master weight."""
        return torch.float32 if self.precision.rest_dtype(param) else param.dtype

    def _dtype_of_state(self, key: str, usual: torch.dtype, param: Tensor) -> torch.dtype:
        """The dtype of a new or loaded state. `usual` is what the peer would take."""
        if not self._has_options:
            return usual
        if self._is_in_blocks(key, param):
            return torch.uint8 if key in self.squares else torch.int8
        if isinstance(self.state_dtype, torch.dtype):
            return self.state_dtype
        if self.state_dtype == "int8" or self.precision.rest_dtype(param):
            return torch.promote_types(usual, torch.float32)
        return usual

    def _dtype_after_loading(self, key: str, saved: torch.dtype, param: Tensor) -> torch.dtype:
        """The dtype in which a state is loaded that was saved in `saved`, a float dtype."""
        return saved if self.state_dtype is None else self._dtype_of_state(key, saved, param)

    def _is_in_blocks(self, key: str, param: Tensor) -> bool:
        """Whether a state has codes of 8 bits. The whole tensor decides, so a shard has the bits
        of one that is not sharded."""
        return (
            self.state_dtype == "int8"
            and key not in self.reduced
            and param.dim() > 1
            and param.shape[-1] % SCALED_BLOCK == 0
            and param.numel() >= LEAST_IN_BLOCKS
            and shards.local(param).is_contiguous()
        )

    def _allowed_dtypes(self, key: str, param: Tensor) -> tuple[torch.dtype, ...]:
        """The dtypes that a state may have, whoever made or loaded it."""
        if key in (REST, COPY):
            rest = self.precision.rest_dtype(param)
            return () if rest is None else (rest,)
        if key.endswith(SCALE):
            return (torch.float32,)
        if self._is_in_blocks(key, param):
            return (self._dtype_of_state(key, param.dtype, param),)
        return FLOATS

    # Companions.

    def _stored_shapes(self, group: Group, param: Tensor) -> dict[str, torch.Size]:
        """The keys and shapes of all states: the rule's, in its order, and then companions."""
        shapes = self._state_shapes(group, param)
        if not self._has_companions:
            return shapes
        rest = self.precision.rest_dtype(param)
        more = {} if rest is None else {COPY if rest.is_floating_point else REST: param.shape}
        for key in shapes:
            if self._is_in_blocks(key, param):
                *others, cols = param.shape
                more[key + SCALE] = torch.Size((*others, cols // SCALED_BLOCK))
        return {**shapes, **more}

    def _new_companions(self, group: Group, param: Tensor) -> State:
        """The companions at the first step: a master weight is the parameter itself."""
        made: State = {}
        for key, shape in self._stored_shapes(group, param).items():
            if key.endswith(SCALE):
                made[key] = shards.zeros_of_blocks(param, shape)
        if self.master_weights:
            self._add_masters(param, made)
        return made

    def _add_masters(self, param: Tensor, state: State) -> None:
        """Makes the master weight of a parameter whose state was saved without one."""
        dtype = self.precision.rest_dtype(param)
        if dtype == torch.float32 and COPY not in state:
            state[COPY] = param.detach().to(dtype, copy=True)
        elif dtype is not None and dtype != torch.float32 and REST not in state:
            state[REST] = torch.zeros_like(param, dtype=dtype)

    # Noise.

    def _noise_of(self, where: check.Where, param: Tensor) -> tuple[int, ...] | None:
        """What the noise of a parameter needs to know (NOISE of `rules/layout.py`)."""
        if not self.stochastic_rounding:
            return None
        places = places_of(param)
        if isinstance(places, str):
            raise NotImplementedError(
                f"{type(self).__name__}: stochastic_rounding cannot tell which part of {where} is "
                f"here: {places}. Use master_weights=True."
            )
        before = sum(len(group["params"]) for group in where.groups[: where.group])
        return (tensor_key(self.seed, before + where.index), *places)

    # Checks.

    def _check_param(self, where: check.Where, group: Group, param: Tensor, grad: Tensor) -> None:
        super()._check_param(where, group, param, grad)
        if self._has_options:
            self._check_precision(where, param)

    def _check_precision(self, where: check.Where, param: Tensor) -> None:
        """Refuses a parameter for which an option has no meaning."""
        given = self._options_given()
        if param.is_complex() and given:
            name, value = next(iter(given.items()))
            raise TypeError(
                f"{name}={value!r} does not know how to store complex numbers: "
                f"{type(self).__name__}: {where}. Leave it out, or optimize "
                "torch.view_as_real(parameter)."
            )
        if self.stochastic_rounding and param.dtype == torch.float16:
            raise TypeError(
                f"stochastic_rounding=True rounds bfloat16, and {where} is torch.float16: "
                f"{type(self).__name__}. Train in bfloat16, or use master_weights=True."
            )
        own = shards.local(param)
        if self._is_in_blocks("", param) and own.shape[-1] % SCALED_BLOCK:
            raise ValueError(
                f"state_dtype='int8': {type(self).__name__}: {where}: the part of a row that is "
                f"here has {own.shape[-1]} numbers, which should be a multiple of {SCALED_BLOCK}, "
                "the numbers that share a scale. Shard the rows, or use another state_dtype."
            )

    def _options_given(self) -> Mapping[str, Any]:
        """The options that are not at their defaults."""
        defaults = Precision()
        return {
            name: value
            for name, value in self.precision._asdict().items()
            if value != getattr(defaults, name) and name != "seed"
        }

    def _refuse_options_without_effect(self) -> None:
        """Refuses an option that changes nothing for any parameter: who gave it expects something.
        It runs when states are made or loaded."""
        params = [param for group in self.param_groups for param in group["params"]]
        dtypes = {param.dtype for param in params}
        name = type(self).__name__
        shorts = dtypes & {torch.bfloat16, torch.float16}
        if self.master_weights and not shorts:
            raise TypeError(
                f"master_weights={self.master_weights!r}: {name}: no parameter is bfloat16 or "
                f"float16, but {_listed(dtypes)}, which needs no master weight. Leave it False."
            )
        has_noise = torch.bfloat16 in dtypes or self.state_dtype == torch.bfloat16
        if self.stochastic_rounding and not has_noise:
            raise TypeError(
                f"stochastic_rounding=True: {name}: no parameter and no state is bfloat16, but "
                f"{_listed(dtypes)}. Leave it False."
            )
        if self.state_dtype == "int8" and not self._has_blocks():
            raise ValueError(
                f"state_dtype='int8': {name}: no state of any parameter would be stored in 8 bits. "
                f"Those of matrices are, with rows of a multiple of {SCALED_BLOCK} numbers and "
                f"{LEAST_IN_BLOCKS} elements or more. Use torch.bfloat16."
            )

    def _has_blocks(self) -> bool:
        return any(
            self._is_in_blocks(key, param)
            for group in self.param_groups
            for param in group["params"]
            for key in self._state_shapes(group, param)
        )


def _listed(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(map(str, dtypes)))
