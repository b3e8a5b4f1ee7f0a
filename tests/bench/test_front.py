"""`python -m bench` runs every measurement in turn. Where results go, what an interruption does."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench.__main__ as front
from bench import readme

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch):
    """Runs it without starting the commands. Returns its status, and those commands."""
    monkeypatch.setattr(front, "DEVICES", {"cpu": front.DEVICES["cpu"]})

    def command(*words, codes=()):
        started, left = [], list(codes)

        def start(words):
            started.append(words[2:])
            code = left.pop(0) if left else 0
            if code is KeyboardInterrupt:
                raise KeyboardInterrupt
            return SimpleNamespace(returncode=code)

        monkeypatch.setattr(front.subprocess, "run", start)
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
        return front.main(), started

    return command


def test_everything_is_measured_in_turn_under_one_folder(run, tmp_path):
    status, started = run("--out", tmp_path)
    assert status == 0
    assert [words[0] for words in started] == [f"bench.{name}" for name in front.COMMANDS]
    for words in started:
        assert words[words.index("--device") + 1] == "cpu"
        assert Path(words[words.index("--out") + 1]).resolve() == tmp_path


def test_one_failure_keeps_nothing_else_from_running(run, tmp_path):
    status, started = run("--out", tmp_path, codes=[0, 1])
    assert (status, len(started)) == (1, len(front.COMMANDS))


@pytest.mark.parametrize("code", [KeyboardInterrupt, front.INTERRUPTED])
def test_an_interruption_ends_it(run, tmp_path, code):
    status, started = run("--out", tmp_path, codes=[0, code])
    assert (status, len(started)) == (front.INTERRUPTED, 2)


def test_what_is_kept_goes_among_the_results_and_into_readme(run, monkeypatch):
    asked = []
    monkeypatch.setattr(readme, "main", lambda words: asked.append(words) or 0)
    status, started = run("--keep", "--only", "memory")
    folder = Path(started[0][started[0].index("--out") + 1])
    assert status == 0 and asked == [[]] and len(started) == 1
    assert not folder.is_absolute() and folder.resolve().parent == readme.RESULTS


def test_what_there_is_not_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--only", "speed")
    assert "invalid choice: 'speed' (choose from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--keep", "--out", "somewhere")


def test_commands_are_those_that_there_are():
    for name, words in front.COMMANDS.items():
        assert (ROOT / "bench" / f"{name}.py").is_file()
        text = (ROOT / "bench" / f"{name}.py").read_text()
        text += (ROOT / "bench" / "command.py").read_text()
        assert all(f'"{word}"' in text for word in words.split() if word.startswith("--"))
