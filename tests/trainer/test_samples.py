"""Samples of a language model in mid-training: when, which, and without ending the training."""

import json
import math
from types import SimpleNamespace

import torch

from trainer.callbacks.text_samples import WriteSamples

MODEL = torch.nn.Linear(1, 1)


def write(model, seed):
    """What a sampler of `data.text.generation` returns: texts by model and seed."""
    assert model is MODEL
    return [f"a{seed}", f"b{seed}"]


def written(folder):
    path = folder / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_control_characters_reach_the_file_and_not_the_terminal(tmp_path, capsys):
    text = "a\x00\x1b[2Jb\n\tü\x9b"
    callback = WriteSamples(MODEL, lambda model, seed: [text], tmp_path, seed=3)
    state = SimpleNamespace(is_world_process_zero=True, log_history=[{"eval_loss": 1.0}], global_step=1)
    callback.on_evaluate(None, state, None, {"eval_loss": 1.0})
    assert written(tmp_path)[0]["text"] == text
    shown = capsys.readouterr().err
    assert shown.endswith("a\\x00\\x1b[2Jb\n\tü\\x9b\n") and not set("\x00\x1b\x9b") & set(shown)


def test_a_sample_when_the_validation_loss_is_the_best_so_far(tmp_path, capsys):
    callback = WriteSamples(MODEL, write, tmp_path, seed=3)
    state = SimpleNamespace(is_world_process_zero=True, log_history=[], global_step=0)
    for loss in (3.0, 2.0, 2.5, math.nan, 1.5):
        state.global_step += 10
        state.log_history.append({"eval_loss": loss, "step": state.global_step})
        callback.on_evaluate(None, state, None, {"eval_loss": loss})
    lines = [(line["step"], line["eval_loss"], line["text"]) for line in written(tmp_path)]
    best = ((10, 3.0), (20, 2.0), (50, 1.5))
    assert lines == [(step, loss, f"{letter}{step + 3}") for step, loss in best for letter in "ab"]
    assert "sample at step 50: a53" in capsys.readouterr().err
    state.global_step = 20  # resumed there: what comes later will be written again
    callback.on_train_begin(None, state, None)
    assert [line["step"] for line in written(tmp_path)] == [10, 10, 20, 20]


def test_other_processes_write_nothing(tmp_path):
    state = SimpleNamespace(is_world_process_zero=False, log_history=[{"eval_loss": 1.0}], global_step=5)
    WriteSamples(MODEL, write, tmp_path, seed=0).on_evaluate(None, state, None, {"eval_loss": 1.0})
    assert written(tmp_path) == []


def test_a_sample_that_fails_ends_no_training(tmp_path, capsys):
    def failing(model, seed):
        raise IndexError("index out of\nrange in self")

    state = SimpleNamespace(is_world_process_zero=True, log_history=[{"eval_loss": 1.0}], global_step=5)
    WriteSamples(MODEL, failing, tmp_path, seed=0).on_evaluate(None, state, None, {"eval_loss": 1.0})
    assert capsys.readouterr().err.splitlines() == ["no sample at step 5: index out of range in self"]
    assert written(tmp_path) == []
