"""One contestant's training run in this process: steps, validation, checkpoints, measurements."""

import contextlib
import math
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bench.contestants import (
    NUDGED,
    OPTIMIZERS,
    STORED,
    follows_a_metric,
    make_optimizer,
    make_schedule,
    nudge,
)
from bench.devices import DEVICES
from bench.lists import DTYPES
from bench.meter import fingerprint, mark, memory, seconds
from bench.models import MODELS
from bench.settings import Settings
from bench.text import Text, windows

VALIDATION_WINDOWS = 32
UNTIMED_STEPS = 2  # the first ones, which make states and plans

Report = dict[str, Any]


@dataclass(frozen=True)
class Saving:
    """Saves a checkpoint every `every` steps, and none if that is 0."""

    folder: Path
    every: int = 0

    def path(self, settings: Settings, contestant: str, step: int) -> Path:
        return self.folder / f"{settings.name}-{contestant}-{step}.pt"


@dataclass(frozen=True)
class Rank:
    """This process is number `number` of `of` that train together. They meet at a file."""

    number: int = 0
    of: int = 1
    meeting: str = ""


class Training:
    """A model, its optimizer and schedule, and its place in the text."""

    def __init__(
        self, settings: Settings, contestant: str, text: Text, rank: Rank = Rank()
    ) -> None:
        self.settings, self.contestant, self.text, self.rank = settings, contestant, text, rank
        pair = OPTIMIZERS[settings.optimizer]
        self.on_gpu = settings.device == "cuda"
        import_module(pair.module(contestant))  # so that it is no part of the run's memory
        self.memory_before, _ = memory(settings.device)
        torch.manual_seed(settings.seed)
        sizes = (settings.context, settings.width, settings.layers)
        model = MODELS[settings.model](text.vocabulary, *sizes, settings.dropout)
        dtype, _ = STORED.get(contestant, (settings.dtype, {}))
        self.model = model.to(settings.device, DTYPES[dtype])
        if contestant == NUDGED:
            nudge(self.model)
        check_length(text, self.model.window)
        self.forward: Callable[[Tensor], Tensor] = self.model
        if rank.of > 1:
            self.forward = DistributedDataParallel(self.model)
        self.optimizer = make_optimizer(
            pair, contestant, self.model, settings.lr, settings.weight_decay
        )
        self.schedule = make_schedule(
            settings.schedule,
            settings.schedule_arguments(),
            self.optimizer,
            pair,
            contestant,
            settings.steps,
        )
        self.accumulator = None
        if settings.accumulate == "float32":
            from fusedstep.accumulate import GradientAccumulator

            self.accumulator = GradientAccumulator(self.model.named_parameters())
        self.places = torch.Generator().manual_seed(settings.seed)
        self.steps_done = 0
        self.validation: list[tuple[int, float]] = []
        self._losses: list[float] = []
        self._unread: list[Tensor] = []  # reading a loss at each step would wait for the device
        self.marks: list[tuple[Any, Any, Any, Any]] = []

    def step(self) -> None:
        """One step of the optimizer, with the gradients of `micro_batches` pieces."""
        begin = mark(self.settings.device)
        self.optimizer.zero_grad()
        pieces = self._next_batch().chunk(self.settings.micro_batches)
        losses = [self._backward(piece, len(pieces), last=piece is pieces[-1]) for piece in pieces]
        if self.accumulator is not None:
            self.accumulator.hand_over()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        before = mark(self.settings.device)
        self.optimizer.step()
        after = mark(self.settings.device)
        loss = torch.stack(losses).sum()
        if self.rank.of > 1:
            torch.distributed.all_reduce(loss)
            loss /= self.rank.of
        if follows_a_metric(self.settings.schedule):
            self.schedule.step(loss.item())
        else:
            self.schedule.step()
        if self.accumulator is not None:
            self.accumulator.reset()
        self._unread.append(loss)
        self.marks.append((begin, before, after, mark(self.settings.device)))
        self.steps_done += 1

    def _backward(self, piece: Tensor, pieces: int, last: bool) -> Tensor:
        """The micro-batch's share of the loss. Only the last one exchanges gradients."""
        with contextlib.ExitStack() as quiet:
            if isinstance(self.forward, DistributedDataParallel) and not last:
                quiet.enter_context(self.forward.no_sync())
            loss = self.forward(piece) / pieces
            loss.backward()
        if self.accumulator is not None:
            self.accumulator()
        return loss.detach()

    def _next_batch(self) -> Tensor:
        """Draws the whole batch in every process, which takes its part of each micro-batch."""
        last = len(self.text.train) - self.model.window
        starts = torch.randint(last + 1, (self.settings.batch,), generator=self.places)
        mine = [
            piece.chunk(self.rank.of)[self.rank.number]
            for piece in starts.chunk(self.settings.micro_batches)
        ]
        batch = windows(self.text.train, torch.cat(mine), self.model.window)
        return batch.to(self.settings.device)

    @torch.no_grad()
    def evaluate(self) -> float:
        """The loss on the validation text, on the same windows every time."""
        last = len(self.text.validation) - self.model.window
        starts = torch.linspace(0, last, VALIDATION_WINDOWS).long()
        self.model.eval()
        batch = windows(self.text.validation, starts, self.model.window)
        loss = self.model(batch.to(self.settings.device)).item()
        self.model.train()
        self.validation.append((self.steps_done, loss))
        return loss

    def losses(self) -> list[float]:
        """The losses of all steps so far."""
        if self._unread:
            self._losses += torch.stack(self._unread).tolist()
            self._unread.clear()
        for number, loss in enumerate(self._losses, 1):
            if not math.isfinite(loss):
                raise ArithmeticError(f"the loss is {loss} at step {number}: take a smaller lr")
        return self._losses

    def checkpoint(self) -> dict[str, Any]:
        """Everything that the next step depends on. It loads with ``weights_only=True``."""
        return {
            "settings": asdict(self.settings),
            "contestant": self.contestant,
            "text": self.text.facts["sha256"],
            "steps_done": self.steps_done,
            "losses": [*self.losses()],
            "validation": [*self.validation],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "places": self.places.get_state(),
            "random": torch.get_rng_state(),
            "random_on_gpu": torch.cuda.get_rng_state() if self.on_gpu else None,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continues from a checkpoint."""
        if saved["text"] != self.text.facts["sha256"]:
            raise ValueError(
                "the repository's text is not what it was when the checkpoint was saved: go back "
                "to that commit, or start from the beginning"
            )
        if saved["steps_done"] >= self.settings.steps:
            raise ValueError("this is the checkpoint of the last step: nothing is left to train")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.places.set_state(saved["places"])
        torch.set_rng_state(saved["random"])
        if self.on_gpu:
            torch.cuda.set_rng_state(saved["random_on_gpu"])
        self.steps_done, self._losses = saved["steps_done"], [*saved["losses"]]
        self.validation = [*saved["validation"]]

    def report(self) -> Report:
        settings, device = self.settings, self.settings.device
        timed = self.marks[UNTIMED_STEPS:] or self.marks
        times = [
            (seconds(begin, end, device), seconds(before, after, device))
            for begin, before, after, end in timed
        ]
        whole, in_step = (statistics.median(column) for column in zip(*times, strict=True))
        _, peak = memory(device)
        return {
            "made_by": OPTIMIZERS[settings.optimizer].made_by(self.contestant),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "losses": self.losses(),
            "validation": self.validation,
            "characters_a_second": settings.batch * settings.context / whole,
            "step_ms": whole * 1e3,
            "optimizer_ms": in_step * 1e3,
            "optimizer_share": statistics.median(part / all_ for all_, part in times),
            "timed_steps": len(timed),
            "peak_bytes": peak,
            "bytes_before": self.memory_before,
            "weights_sha256": fingerprint(self.model),
        }


def train(
    settings: Settings,
    contestant: str,
    characters: str,
    saving: Saving | None = None,
    resume: Path | None = None,
    rank: Rank = Rank(),
    on_step: Callable[[str], None] = lambda state: None,
) -> Report:
    """A whole run, or the rest of a saved one."""
    prepare(settings, rank)
    training = Training(settings, contestant, Text(characters), rank)
    if resume is not None:
        training.restore(torch.load(resume, weights_only=True, map_location="cpu"))
    was_quiet = DEVICES[settings.device].watch()
    loss = training.validation[-1][1] if training.validation else training.evaluate()
    while training.steps_done < settings.steps:
        training.step()
        done = training.steps_done
        if done % settings.evaluate_every == 0 or done == settings.steps:
            training.losses()
            loss = training.evaluate()
        if saving is not None and saving.every and done % saving.every == 0:
            save(training.checkpoint(), saving.path(settings, contestant, done))
        on_step(f"step {done} of {settings.steps}, validation loss {loss:.3f}")
    report = training.report()
    # Processes that train together would take each other for a disturbance.
    return {**report, "disturbed": None if rank.of > 1 else not was_quiet()}


def prepare(settings: Settings, rank: Rank) -> None:
    """Prepares this process, before the first tensor is on a device."""
    torch.set_num_threads(max(1, settings.threads // rank.of))
    if settings.device == "cuda":  # so that a resume is bit-exact there too, as far as torch can
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # torch turns this module into an object with properties, which mypy does not see.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if rank.of > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{rank.meeting}", rank=rank.number, world_size=rank.of
        )


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Saves so that the file is complete whenever it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save(checkpoint, unfinished)
    unfinished.replace(path)


def check_length(text: Text, window: int) -> None:
    shortest = min(len(text.train), len(text.validation))
    if shortest < window:
        raise ValueError(
            f"context should be smaller: it takes {window} characters in a row, and the validation "
            f"text has {shortest}"
        )
