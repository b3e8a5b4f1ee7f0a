"""Fine-tunes a T5 with Adafactor's own step sizes, in transformers' Trainer.

    python docs/scripts/finetune_t5.py
    python docs/scripts/finetune_t5.py --model google-t5/t5-small --pairs pairs.tsv

Without --model, a small T5 over bytes starts from random weights; without --pairs, it learns to
write words backwards. A line of pairs.tsv is a source, a tab, and its target.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from fusedstep.hf import Adafactor, AdafactorSchedule


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains, and returns the losses that the Trainer wrote down."""
    given = parsed(arguments)
    set_seed(0)
    model, tokenizer = model_and_tokenizer(given.model)
    pairs = read_pairs(given.pairs) if given.pairs else words_backwards(512)
    data = [tokenizer(source, text_target=target) for source, target in pairs]

    # Adafactor chooses its step size: relative to the weights, and after 10,000 steps falling with
    # the root of their number. The schedule only shows it, so that the Trainer can log it.
    optimizer = Adafactor(model.parameters())
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=given.out,
            max_steps=given.steps,
            per_device_train_batch_size=32,
            logging_steps=10,
            max_grad_norm=0.0,  # Adafactor clips its update by itself
            save_strategy="no",
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        optimizers=(optimizer, AdafactorSchedule(optimizer)),
    )
    trainer.train()
    print(*optimizer.backends(), sep="\n")
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def model_and_tokenizer(name: str | None) -> tuple:
    if name:
        model = T5ForConditionalGeneration.from_pretrained(name, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(name)
    tokenizer = ByT5Tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config), tokenizer


def read_pairs(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def words_backwards(count: int) -> list[tuple[str, str]]:
    words = ["".join(random.choices("abcdefgh", k=random.randint(2, 6))) for _ in range(count)]
    return [(word, word[::-1]) for word in words]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a name on the hub, or a folder")
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="t5-out", help="the Trainer's folder")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
