"""What the pages say about optimizers, their peers and messages, compared with the code."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from transformers import SchedulerType, TrainingArguments

import fusedstep.hf
from fusedstep import optim, schedules
from fusedstep.optim.by_name import classes
from fusedstep.optim.mirrored import ours_for

ROOT = Path(__file__).parents[2]
CHOOSE, MIGRATE, BACKENDS, HOW = (
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("choose", "migrate", "backends", "how-it-works")
)


def rows(text, heading):
    """The cells of the tables below a heading, without the headings of columns."""
    part = text.split(f"\n{heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (.*) \|$", part, re.MULTILINE)
    return [re.split(r" \| ?", line) for line in lines]


def named(path):
    """`optim.AdamW`, `torch.optim.AdamW`, `fusedstep.hf.AdamW`: what is at that path."""
    room, _, name = path.rpartition(".")
    if room in ("optim", "hf"):
        room = f"fusedstep.{room}"
    return getattr(importlib.import_module(room), name)


def in_code(cell):
    return re.findall(r"`([^`]+)`", cell)


def numbers_a_parameter(kind, **options):
    """How many numbers of state a matrix of 64 x 32 has for each of its numbers. Single numbers,
    rows and columns do not count."""
    param = torch.nn.Parameter(torch.ones(64, 32))
    param.grad = torch.ones_like(param)
    optimizer = kind([param], **options)
    optimizer.step()
    held = [t for t in optimizer.state[param].values() if isinstance(t, torch.Tensor)]
    return sum(t.numel() == param.numel() for t in held)


OPTIONS = {"momentum": 0.9, "beta1": 0.9, "centered": True, "amsgrad": True}
QUIET = {fusedstep.hf.AdamW: {"no_deprecation_warning": True}}
MEMORY = rows(CHOOSE, "## Memory")[1:]


@pytest.mark.parametrize("row", MEMORY, ids=lambda row: row[0])
def test_memory(row):
    kind = named(in_code(row[0])[0])
    quiet = QUIET.get(kind, {})
    plain = 0 if row[1].startswith("n + m") else int(row[1])
    assert numbers_a_parameter(kind, **quiet) == plain
    for option, count, more in re.findall(r"`(\w+)`: (\d)( more)?", row[2] if row[2:] else ""):
        expected = int(count) + (plain if more else 0)
        assert numbers_a_parameter(kind, **quiet, **{option: OPTIONS[option]}) == expected, option


def test_every_optimizer_is_in_the_tables_of_memory_and_learning_rates():
    ours = {f"{kind.__module__.split('.')[1]}.{kind.__name__}" for kind in classes().values()}
    assert {in_code(row[0])[0] for row in MEMORY} == ours - {"optim.SparseAdam"}
    rates = rows(CHOOSE, "## Default learning rates")[1:]
    listed = {}
    for rate, cell in rates:
        for path in re.findall(r"`((?:optim|hf)\.\w+)`", cell):
            listed[path] = eval(rate)
    assert set(listed) == ours
    for path, rate in listed.items():
        assert inspect.signature(named(path)).parameters["lr"].default == rate, path


def is_torchs(kind):
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)


TORCH = [row for row in rows(MIGRATE, "## torch.optim") if row[0].startswith("`torch.optim.")]


def test_every_class_of_torch_is_in_the_table():
    own = {f"torch.optim.{name}" for name, kind in vars(torch.optim).items() if is_torchs(kind)}
    assert {in_code(row[0])[0] for row in TORCH} >= own - {"torch.optim.Optimizer"}


@pytest.mark.parametrize("row", TORCH, ids=lambda row: row[0])
def test_torchs_arguments_are_ours_in_the_same_places(row):
    name = in_code(row[0])[0]
    peer = getattr(torch.optim, name.rpartition(".")[2], None)
    if peer is None:
        pytest.skip(f"this torch has no {name}")
    if row[1] == "none":
        assert ours_for(peer) is peer
        return
    own = named(in_code(row[1])[0])
    assert ours_for(peer) is own
    theirs, ours = (inspect.signature(kind).parameters for kind in (peer, own))
    placed = [name for name, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(placed)] == placed
    for argument, parameter in theirs.items():
        assert ours[argument].default == parameter.default, argument


TRAINER = [row for row in rows(MIGRATE, "## transformers") if row[1].startswith("`fusedstep.")]


def test_the_trainer_gets_what_the_table_says(tmp_path):
    listed = [row for row in TRAINER if "." not in row[0]]
    assert len(listed) == 6
    for name, kind in listed:
        args = TrainingArguments(str(tmp_path), optim=in_code(name)[0], use_cpu=True)
        found, _ = fusedstep.hf.optimizer_cls_and_kwargs(args)
        assert found is named(in_code(kind)[0])


def test_transformers_names_are_ours():
    module = importlib.import_module("transformers.optimization")
    for name, kind in (row for row in TRAINER if "." in row[0]):
        own = named(in_code(kind)[0])
        assert own.__name__ == in_code(name)[0].rpartition(".")[2]
    theirs = {name for name in vars(module) if name.startswith("get_") and "schedule" in name}
    assert theirs - {"get_scheduler"} <= set(fusedstep.hf.__all__)
    kinds = re.search(r"`lr_scheduler_type=` keeps its names: (.*?)\.\n", MIGRATE, re.DOTALL)
    listed = set(in_code(kinds[1]))
    assert listed == {kind.value for kind in SchedulerType} <= set(schedules.SCHEDULES)


def test_tensorflows_arguments_are_ours():
    for cells in rows(MIGRATE, "## TensorFlow's names of transformers")[1:]:
        there, here = in_code(cells[0])[0], in_code(cells[1])[0]
        kind = named(here.partition("(")[0])
        known = inspect.signature(kind).parameters
        for argument in re.findall(r"\w+", there.partition("(")[2]):
            assert argument in known, (there, argument)


def test_a_checkpoint_with_the_step_in_its_group_goes_on():
    """`taken_over` of the page: training goes on as if nothing had happened."""
    names = {}
    exec(re.search(r"```python\n(.*?)```", MIGRATE, re.DOTALL)[1], names)

    def trained(optimizer, model, steps):
        generator = torch.Generator().manual_seed(steps)
        for _ in range(steps):
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()

    models = [torch.nn.Linear(4, 4) for _ in range(2)]
    first = torch.optim.AdamW(models[0].parameters(), lr=0.1)
    trained(first, models[0], 3)
    models[1].load_state_dict(models[0].state_dict())
    saved = first.state_dict()
    groups = [{**group, "step": 3} for group in saved["param_groups"]]
    states = {
        place: {"state1": own["exp_avg"].clone(), "state2": own["exp_avg_sq"].clone()}
        for place, own in saved["state"].items()
    }
    second = optim.AdamW(models[1].parameters(), lr=0.1)
    renamed = {"state1": "exp_avg", "state2": "exp_avg_sq"}
    old = {"state": states, "param_groups": groups}
    second.load_state_dict(names["taken_over"](old, second, renamed))
    for optimizer, model in zip((first, second), models, strict=True):
        trained(optimizer, model, 2)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def sources():
    """The text of the package and of its build, with strings that go over lines in one piece."""
    paths = [
        *ROOT.glob("python/fusedstep/**/*.py"),
        ROOT / "setup.py",
        ROOT / "csrc/cuda/CMakeLists.txt",
    ]
    text = "\n".join(path.read_text() for path in paths)
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_the_messages_of_the_page_are_those_of_the_code():
    code = sources()
    quoted = [
        in_code(row[0])[0]
        for heading in ("## When the install fails", "## Messages, and what to do")
        for row in rows(BACKENDS, heading)[1:]
        if row[0].startswith("`")
    ]
    assert len(quoted) >= 20
    for message in quoted:
        for part in re.split(r"'cuda'|\.\.\.", message):
            assert part.strip(": ") in code, message


READS = re.compile(
    r'environ(?:\.get)?[\[(]"(FUSEDSTEP_\w+)"|choice\("(FUSEDSTEP_\w+)"\)|VARIABLE = "(\w+)"'
    r"|ENV\{(FUSEDSTEP_\w+)\}"
)


def test_the_page_of_backends_has_every_variable_that_the_code_reads():
    read = {name for match in READS.findall(sources()) for name in match if name}
    listed = {in_code(row[0])[0] for row in rows(BACKENDS, "## Installing")[1:]}
    assert listed == read and len(read) == 5


def test_the_rule_of_how_it_works_is_the_rule():
    python, cpp = re.findall(r"```text\n(.*?)```", HOW, re.DOTALL)
    assert python in (ROOT / "python/fusedstep/rules/lion.py").read_text()
    assert cpp in (ROOT / "csrc/rules.h").read_text()
