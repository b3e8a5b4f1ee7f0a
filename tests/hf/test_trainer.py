"""transformers' Trainer trains a tiny T5 with our optimizers and every schedule, saves, and resumes
as if it had not stopped."""

import pytest
import torch
import transformers
import transformers.optimization as peer

import fusedstep.hf
import fusedstep.optim
from tests.support.sweeps import sweep

STEPS, SAVED, WARMUP = 6, 3, 2
# What a schedule needs in addition to the numbers of steps.
FURTHER = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.5},
    "warmup_stable_decay": {"num_decay_steps": 2},
    "polynomial": {"power": 2.0},
    "reduce_lr_on_plateau": {"patience": 0, "threshold": 0.5, "factor": 0.5},
    "greedy": {"patience": 0, "factor": 0.5},
}
METRIC = ("reduce_lr_on_plateau", "greedy")
EVALUATES = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}


def tiny_t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4,
        decoder_start_token_id=0, dropout_rate=0.1,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def sentences():
    tokens = torch.randint(2, 32, (24, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row.flip(0)} for row in tokens]


def train(folder, make_optimizers, *, resume=False, **more):
    """Returns the model after STEPS steps, and the log. With `resume` the run starts from the saved
    checkpoint."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=SAVED, logging_steps=1,
        per_device_train_batch_size=4, per_device_eval_batch_size=8, learning_rate=0.01,
        warmup_steps=WARMUP, report_to=[], disable_tqdm=True, use_cpu=True, save_total_limit=None,
        **more,
    )  # fmt: skip
    model, data = tiny_t5(), sentences()
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data[:8],
        optimizers=make_optimizers(model),
    )
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}") if resume else None)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [p.detach() for p in model.parameters()], log, trainer


def assert_like_the_peers(params, others):
    """Equal up to the roundings of six steps. The largest error was 7e-7, and 2.6e-6 with greedy,
    which doubles the learning rate at each step (2026-11-21)."""
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=5e-6)


def assert_resumes(folder, make_optimizers, **more):
    whole, log, trainer = train(folder, make_optimizers, **more)
    again, log_again, _ = train(folder, make_optimizers, resume=True, **more)
    assert all(map(torch.equal, whole, again))
    assert [e["learning_rate"] for e in log] == [e["learning_rate"] for e in log_again]
    assert any(not torch.equal(p, q) for p, q in zip(whole, tiny_t5().parameters(), strict=True))
    return whole, log, trainer


@pytest.mark.parametrize(
    "options", sweep([{}, {"warmup_init": True}, {"beta1": 0.9}], [{"warmup_init": True}]), ids=str
)
def test_adafactor_that_chooses_its_own_step_size(tmp_path, options):
    def ours(model):
        optimizer = fusedstep.hf.Adafactor(model.parameters(), **options)
        return optimizer, fusedstep.hf.AdafactorSchedule(optimizer)

    def peers(model):
        optimizer = peer.Adafactor(model.parameters(), **options)
        return optimizer, peer.AdafactorSchedule(optimizer)

    params, log, _ = assert_resumes(tmp_path / "ours", ours)
    others, log_of_peer, _ = train(tmp_path / "peers", peers)
    assert_like_the_peers(params, others)
    rates = [[float(e["learning_rate"]) for e in entries] for entries in (log, log_of_peer)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)
    assert len(set(rates[0])) > 1  # the step size follows the size of the parameters


# Each takes seconds.
EVERY = [kind.value for kind in fusedstep.hf.SchedulerType]
USUAL = ("reduce_lr_on_plateau",)


@pytest.mark.parametrize("name", sweep(EVERY, USUAL))
def test_adamw_with_every_schedule(tmp_path, name):
    further = FURTHER.get(name)
    more = EVALUATES if name in METRIC else {}

    def ours(model):
        optimizer = fusedstep.optim.AdamW(model.parameters(), lr=0.01)
        return optimizer, fusedstep.hf.get_scheduler(name, optimizer, WARMUP, STEPS, further)

    def peers(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return optimizer, peer.get_scheduler(name, optimizer, WARMUP, STEPS, further)

    def trainers_schedule(model):
        return fusedstep.optim.AdamW(model.parameters(), lr=0.01), None

    params, log, trainer = assert_resumes(tmp_path / "ours", ours, **more)
    assert trainer.lr_scheduler.state_dict()["last_epoch"] == STEPS
    others, log_of_peer, _ = train(tmp_path / "peers", peers, **more)
    assert [e["learning_rate"] for e in log] == [e["learning_rate"] for e in log_of_peer]
    if name != "constant":
        assert len({e["learning_rate"] for e in log}) > 1
    assert_like_the_peers(params, others)

    # The Trainer makes transformers' schedule by name for our optimizer. The run is the same.
    more = {
        **more,
        "lr_scheduler_type": fusedstep.hf.SchedulerType(name),
        "lr_scheduler_kwargs": further,
    }
    same, _, trainer = train(tmp_path / "by name", trainers_schedule, **more)
    assert all(map(torch.equal, params, same))


def test_the_trainer_makes_our_adafactor_where_it_is_told_to(tmp_path):
    """With `optimizer_cls_and_kwargs`. The Trainer makes two groups: with and without decay."""
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, report_to=[], disable_tqdm=True, use_cpu=True,
        weight_decay=0.1, save_strategy="no",
    )  # fmt: skip
    options = {"lr": 0.01, "scale_parameter": False, "relative_step": False}
    trained = []
    for kind in (fusedstep.hf.Adafactor, peer.Adafactor):
        model = tiny_t5()
        trainer = transformers.Trainer(
            model,
            arguments,
            train_dataset=sentences(),
            optimizer_cls_and_kwargs=(kind, options),
        )
        trainer.train()
        assert type(trainer.optimizer.optimizer) is kind  # inside accelerate's wrapper
        assert len(trainer.optimizer.param_groups) == 2
        trained.append([p.detach() for p in model.parameters()])
    assert_like_the_peers(*trained)
