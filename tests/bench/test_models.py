"""The text and the models of `python -m bench.train`: the sources of the repository, and two small
models that never see a later character."""

import torch

from bench import models
from bench.text import Text, repository_text


def test_the_text_is_that_of_the_sources_in_the_order_of_their_paths(tmp_path):
    files = {
        "python/b.py": "b = 1", "python/a/z.py": "z", "csrc/k.cu": "k", "README.md": "é",
        "python/x.so": "no", "bench/out/t.md": "no", "bench/results/r/t.md": "no",
        "other/o.py": "no",
    }  # fmt: skip
    for name in reversed(files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(files[name], encoding="utf-8")
    assert repository_text(tmp_path) == "é\nk\nz\nb = 1"


def test_the_repository_itself_can_be_read():
    characters = repository_text()
    assert characters == repository_text()
    assert all(words in characters for words in ("import torch", "__global__", "## Install"))


def test_characters_are_numbered_in_their_order_and_the_end_is_for_validation():
    text = Text("ab\nüa" * 4)
    numbers = torch.cat((text.train, text.validation))
    assert numbers.tolist() == [1, 2, 0, 3, 1] * 4
    assert len(text.validation) == 2
    assert text.facts["vocabulary"] == text.vocabulary == 4


def logits_of(kind, monkeypatch):
    """A model that returns its logits, and its result for a window of random characters."""
    monkeypatch.setattr(models, "loss", lambda logits, expected: logits)
    torch.manual_seed(0)
    model = models.MODELS[kind](23, 8, 32, 2, 0.0).double()
    window = torch.randint(23, (2, model.window))

    def changed_at(place):
        other = window.clone()
        other[:, place] = (other[:, place] + 1) % 23
        return (model(other) != model(window)).any(-1).all(0).tolist()

    return changed_at


def test_gpt_predicts_from_what_was_before(monkeypatch):
    changed_at = logits_of("gpt", monkeypatch)
    for place in range(9):
        assert changed_at(place) == [k >= place for k in range(8)]


def test_t5_predicts_from_the_first_half_and_from_what_was_before(monkeypatch):
    changed_at = logits_of("t5", monkeypatch)
    for place in range(16):
        assert changed_at(place) == [k > place - 8 for k in range(8)]
