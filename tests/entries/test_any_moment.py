"""Runs that are preempted or killed at any moment, several times, end exactly like an uninterrupted run."""

import json
import os
import signal

import pytest
from forked_runs import ForkedRuns
from small_runs import SmallRuns

from storage import manifest
from storage.checkpoints import checkpoints
from trainer.run_differences import TIMING, differences

pytestmark = pytest.mark.slow

KILL, TERM, INT, USR1 = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
AUTO = ["--resume_from_checkpoint", "auto"]
STEPS = "logging_steps: 2\nsave_strategy: steps\nsave_steps: 3\neval_steps: 4\nmax_steps: 11\n"
EPOCHS = "num_train_epochs: 4\nlogging_strategy: epoch\nsave_strategy: epoch\neval_strategy: epoch\n"  # of 3 steps
BEST = "checkpointing: {monitor: val/loss, mode: MODE, save_top_k: 1, every_n_epochs: 0}\n"
FINAL = "max_steps: 7\neval_strategy: epoch\nlogging_steps: 2\nsave_strategy: steps\nsave_steps: 7\n"
PLATEAU = "lr_scheduler_type: reduce_lr_on_plateau\nscheduler: {patience: 0, factor: 0.5}\nlearning_rate: 0.9\n"
STOP = "early_stopping: {monitor: val/loss, patience: 0, min_delta: 10}\nsave_last: true\n"

# A run's configuration, and for each series of starts how all but the last start end.
CASES = {
    "before, in and after a step": (
        STEPS + "gradient_accumulation_steps: 2\nmodel: {dropout: 0.1}\n",
        [
            [("on_step_begin", 1, 0, USR1), ("on_step_begin", 2, 0, INT), ("on_optimizer_step", 5, 0, TERM)],
            [("on_prediction_step", 4, 1, TERM), ("on_step_end", 7, 0, KILL), ("on_prediction_step", 8, 0, INT)],
        ],
    ),
    "an epoch's end with early stopping": (
        EPOCHS + "early_stopping: {monitor: val/loss, patience: 5, check_on_train_epoch_end: true}\n",
        [[("on_step_begin", 2, 0, TERM)], [("on_step_end", 3, 0, TERM)], [("on_epoch_begin", 3, 0, TERM)]],
    ),
    "an evaluation at an epoch's end, twice": (
        EPOCHS + PLATEAU,
        [[("on_prediction_step", 6, 0, TERM), ("on_prediction_step", 6, 0, TERM)]],
    ),
    "an epoch's end, and dead before the next checkpoint": (
        EPOCHS.replace("save_strategy: epoch", "save_strategy: steps\nsave_steps: 3"),
        [
            [("on_step_end", 6, 0, TERM), ("on_epoch_end", 6, 0, KILL), ("on_epoch_begin", 6, 0, KILL)],
            [("on_epoch_end", 9, 0, TERM), ("on_step_begin", 9, 0, KILL), ("on_epoch_begin", 9, 0, TERM)],
        ],
    ),
    "the evaluation that ends the run": (
        FINAL,
        [[("on_prediction_step", 7, 0, KILL)], [("on_epoch_end", 7, 0, TERM)], [("published", 7, 0, KILL)]],
    ),
    "a stop in the middle of an epoch": (
        "max_steps: 11\nlogging_strategy: epoch\nsave_strategy: steps\nsave_steps: 4\neval_steps: 4\n"
        "early_stopping: {monitor: val/loss, patience: 0, min_delta: 10}\n",
        [[("on_epoch_end", 8, 0, KILL)], [("on_epoch_end", 8, 0, TERM)], [("published", 8, 0, KILL)]],
    ),
    "the best is being written": (
        BEST.replace("MODE", "max") + "learning_rate: 0.9\n"
        "eval_steps: 4\nsave_strategy: steps\nsave_steps: 7\nmax_steps: 14\n",
        [[("publish", 8, 0, KILL), ("on_step_begin", 8, 0, KILL)], [("published", 8, 0, KILL)]],
    ),
    "the last rotation": (
        STEPS + "checkpointing: {monitor: val/loss, save_top_k: 2, every_n_epochs: 1}\nsave_total_limit: 2\n",
        [
            [("published", 11, 0, KILL)],
            [("on_step_end", 8, 0, TERM), ("on_step_end", 9, 0, TERM), ("final", 0, 0, KILL)],
        ],
    ),
    "many features together": (
        STEPS.replace("eval_steps: 4", "eval_steps: 3")
        + "using_ema: true\nema: {decay: 0.9}\ngradient_accumulation_steps: 2\ndataloader_num_workers: 1\n"
        "load_best_model_at_end: true\nlogging: {logger_type: CSVLogger}\nlr_scheduler_type: cosine\n",
        [[("on_step_begin", 5, 0, TERM), ("on_prediction_step", 9, 0, KILL), ("finished", 0, 0, KILL)]],
    ),
}  # fmt: skip


@pytest.fixture
def start():
    return ForkedRuns()


def left_behind(run):
    """Names in a run's folder, targets of symlinks, and the list of checkpoints."""
    names = {path.name: os.readlink(path) if path.is_symlink() else "" for path in run.iterdir()}
    listing = run / "checkpoints.json"
    return names, json.loads(listing.read_text()) if listing.is_file() else None


def history(run):
    """The log in the newest checkpoint, without times."""
    state = json.loads((checkpoints(run)[-1] / "trainer_state.json").read_text())
    return [{name: value for name, value in line.items() if not TIMING.search(name)} for line in state["log_history"]]


@pytest.mark.parametrize("name", CASES)
def test_the_end_is_the_same(start, tmp_path, name):
    text, series = CASES[name]
    runs = SmallRuns(tmp_path)
    assert start(runs.words(text, out="whole"))[0] == 0
    whole = tmp_path / "whole"
    for number, troubles in enumerate(series):
        run = tmp_path / f"parts{number}"
        words = [*runs.words(text, out=run.name), *AUTO]
        for trouble in troubles:
            code, output = start(words, trouble)
            assert code == (-KILL if trouble[-1] == KILL else 75), output
        code, output = start(words)
        assert code == 0, output
        assert differences(whole, run) == [], troubles
        assert left_behind(run) == left_behind(whole) and history(run) == history(whole), troubles
        assert manifest.read(run)["step"] == manifest.read(whole)["step"]


def test_save_only_model(start, tmp_path):
    """The resumable checkpoint of a preemption is kept, and complete checkpoints are not called damaged."""
    text = STEPS + "save_only_model: true\n" + BEST.replace("MODE", "min")
    runs = SmallRuns(tmp_path)
    words = [*runs.words(text, out="out"), *AUTO]
    assert start(words, ("on_step_begin", 4, 0, TERM))[0] == 75
    assert start(words, ("on_step_begin", 8, 0, KILL))[0] == -KILL
    code, output = start(words)
    assert code == 0 and f"resuming from {tmp_path / 'out/checkpoint-5'}" in output and "damaged" not in output
    assert "renamed superseded-checkpoint-" in output
    assert start(runs.words(text, out="whole"))[0] == 0
    assert not differences(tmp_path / "whole", tmp_path / "out")
    before = left_behind(tmp_path / "whole")
    code, output = start([*runs.words(text, out="whole"), *AUTO])  # queued again by mistake
    assert code == 0 and "checkpoint-11 is the run's last step: nothing is left to train" in output
    assert left_behind(tmp_path / "whole") == before


def test_save_only_model_and_a_preemption_where_a_save_is_due(start, tmp_path):
    """Before and after the evaluation: the checkpoint is resumable and is not replaced by one that is not."""
    text = "save_only_model: true\nsave_strategy: steps\nsave_steps: 2\neval_steps: EVAL\nmax_steps: 7\n"
    runs = SmallRuns(tmp_path)
    for number, (every, trouble) in enumerate(((5, ("on_step_begin", 3)), (2, ("on_prediction_step", 4)))):
        words = [*runs.words(text.replace("EVAL", str(every)), out=f"out{number}"), *AUTO]
        assert start(words, (*trouble, 0, TERM))[0] == 75
        saved = tmp_path / f"out{number}" / "checkpoint-4"
        assert manifest.read(saved)["resumable"]
        assert start(words, ("on_step_begin", 5, 0, KILL))[0] == -KILL
        assert manifest.verify(saved) is None and manifest.read(saved)["resumable"]
        code, output = start(words)
        assert code == 0 and f"resuming from {saved}" in output


def test_a_failed_save_keeps_the_previous_best_checkpoint(start, tmp_path):
    """The disk is full when the new best checkpoint is saved."""
    text = BEST.replace("MODE", "max") + "learning_rate: 0.9\neval_steps: 4\nsave_strategy: steps\nsave_steps: 3\n"
    runs = SmallRuns(tmp_path)
    troubles = [("publish", 8, 0, "full"), ("on_step_begin", 11, 0, KILL)]
    code, output = start(runs.words(text + "max_steps: 14\n", out="out"), *troubles)
    assert code == -KILL and "checkpoint-8 could not be saved: No space left on device" in output
    listing = json.loads((tmp_path / "out/checkpoints.json").read_text())["monitors"]["eval_loss"]["best"]
    assert [entry["step"] for entry in listing] == [4]
    assert manifest.verify(tmp_path / "out/best-checkpoint") is None
    assert os.readlink(tmp_path / "out/best-checkpoint") == "checkpoint-4"
