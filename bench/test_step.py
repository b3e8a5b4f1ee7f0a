"""A fixed small subset under pytest-benchmark: `pytest bench --benchmark-only`."""

from typing import Any

import pytest

from bench.clock import WARM_UP_STEPS
from bench.lists import DTYPES, LISTS, parameters
from bench.optimizers import HERE, RULES
from bench.providers import OURS

pytest.importorskip("pytest_benchmark")

CASES = [
    pytest.param(rule, provider, chosen, id=f"{rule}-{chosen}-{provider}")
    for rule, entry in RULES.items()
    for chosen in ("tiny", "small")
    if entry.races_on(LISTS[chosen])
    for provider in entry.providers_on("cpu")
    if provider in HERE
]


@pytest.mark.parametrize(("rule", "provider", "chosen"), CASES)
def test_step(benchmark: Any, rule: str, provider: str, chosen: str) -> None:
    benchmark.group = f"{rule} {chosen} float32"
    params = parameters(LISTS[chosen].tensors(DTYPES["float32"]))
    try:
        optimizer = RULES[rule].providers[provider](params)
    except ModuleNotFoundError as error:
        if provider == OURS:
            raise
        pytest.skip(f"{error.name} is not installed")
    benchmark.pedantic(optimizer.step, rounds=10, iterations=1, warmup_rounds=WARM_UP_STEPS)
