"""A trainer that is preempted: the checkpoint that it saves, and the pending work that a resume does first."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from tiny_training import Regression, make_trainer
from transformers import TrainerCallback

from storage.checkpoints import checkpoints, step_of, sweep
from trainer import preemption
from trainer.checkpointing import async_writer, manager

EACH_TWO = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "logging_steps": 1, "max_steps": 8}


def names(folder):
    return [path.name for path in checkpoints(folder)]


class SignalAt(TrainerCallback):
    """Sends SIGTERM to this process at an event of a step."""

    def __init__(self, event, step):
        def send(args, state, control, **kwargs):
            if state.global_step == step:
                os.kill(os.getpid(), 15)

        setattr(self, event, send)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        ({}, [4, 8]),  # log lines
        ({"eval_strategy": "steps", "eval_steps": 3}, [3, 4, 6, 8]),
        ({"save_strategy": "steps", "save_steps": 5, "save_in_background": False}, [4, 5, 8]),
        ({"num_train_epochs": 1, "max_steps": -1, "logging_strategy": "epoch"}, [11]),
    ],
)
def test_steps_without_work_never_reach_the_boundary(tmp_path, cause, expected):
    trainer = make_trainer(tmp_path, **{"count": 44, "max_steps": 8, "logging_steps": 4} | cause)
    steps, end_step = [], trainer.end_step
    trainer.end_step = lambda *arguments: (steps.append(trainer.state.global_step), end_step(*arguments))
    trainer.train()
    assert sorted(set(steps)) == expected  # the last step reaches it again at the epoch's end


@pytest.mark.parametrize("cause", ["lock", "save", "ranks"])
def test_what_needs_polling_reaches_the_boundary_at_every_step(tmp_path, cause):
    trainer = make_trainer(tmp_path, max_steps=4, logging_steps=99)
    assert not trainer.has_boundary_work()
    if cause == "lock":
        trainer.locks = [SimpleNamespace(lost=False), SimpleNamespace(lost=True)]
    elif cause == "save":
        trainer.checkpointing.saving_state = trainer.state
    else:
        trainer.checkpointing.consensus.group = object()
    assert trainer.has_boundary_work()


@pytest.mark.slow
def test_save_only_model(tmp_path):
    """The checkpoint of a preemption is resumable all the same."""
    with preemption.Signals() as signals:
        trainer = make_trainer(tmp_path, save_only_model=True, **EACH_TWO)
        trainer.signals = signals
        trainer.add_callback(SignalAt("on_step_begin", 2))
        with pytest.raises(preemption.Preempted, match="step 3: saved checkpoint-3"):
            trainer.train()
    assert not (tmp_path / "checkpoint-2/optimizer.json").exists()
    assert (tmp_path / "checkpoint-3/optimizer.json").exists()


@pytest.mark.slow
def test_a_full_disk(tmp_path, monkeypatch):
    def publish(staged, final):
        if final.name == "checkpoint-3":
            raise OSError(28, "No space left on device")
        write(staged, final)

    write = async_writer.publish
    monkeypatch.setattr(async_writer, "publish", publish)
    with preemption.Signals() as signals:
        trainer = make_trainer(tmp_path, max_failed_saves=1, **EACH_TWO)
        trainer.signals = signals
        trainer.add_callback(SignalAt("on_step_begin", 2))
        with pytest.raises(preemption.Preempted, match="step 3"):
            trainer.train()
    assert names(tmp_path) == ["checkpoint-2"]


class Noisy(Regression):
    """Draws random numbers in its evaluation too; one of its loss terms may be infinite."""

    def forward(self, x, y, **context):
        out = super().forward(x, y)
        noise = torch.randn(()) * 0.1
        return {"loss": out["loss"] + noise * self.head.bias.sum(), "losses": {"odd": noise.detach() / 0}}


def interrupted(folder, event, step, **options):
    """Preempt a run, and return the Trainer that resumed it."""
    with preemption.Signals() as signals:
        trainer = make_trainer(folder, Noisy(dropout=0.1), **options)
        trainer.signals = signals
        trainer.callback_handler.callbacks.insert(0, SignalAt(event, step))
        with pytest.raises(preemption.Preempted):
            trainer.train()
    return resumed(folder, **options)


def resumed(folder, event=None, **options):
    """Resume a run, preempted again at the first `event` if there is one."""
    with preemption.Signals() as signals:
        again = make_trainer(folder, Noisy(seed=5, dropout=0.1), **options)
        again.signals = signals
        if event is not None:
            again.callback_handler.callbacks.insert(0, SignalAt(event, step_of(checkpoints(folder)[-1])))
        try:
            again.train(resume_from_checkpoint=str(checkpoints(folder)[-1]))
        except preemption.Preempted:
            return resumed(folder, **options)
    return again


def values(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("eval_loss"), line.get("loss_odd")) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(("event", "step"), [("on_step_begin", 3), ("on_prediction_step", 4), ("on_step_begin", 4)])
def test_evaluations_that_draw_random_numbers(tmp_path, event, step):
    truth = make_trainer(tmp_path / "truth", Noisy(dropout=0.1), **EVALUATED)
    truth.train()
    again = interrupted(tmp_path / "parts", event, step, **EVALUATED)
    assert values(tmp_path / "parts")[:-1] == values(tmp_path / "truth")[:-1]  # the last is a summary
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), truth.model.parameters(), strict=True))
    assert any(abs(float(line[3])) == float("inf") for line in values(tmp_path / "truth") if line[3] is not None)


@pytest.mark.slow
@pytest.mark.parametrize("event", ["on_step_begin", "on_prediction_step"])
def test_the_last_step_in_the_middle_of_an_epoch(tmp_path, event):
    """transformers ends the epoch there, with an evaluation and a log line."""
    options = {"eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "no", "max_steps": 8}
    make_trainer(tmp_path / "truth", Noisy(dropout=0.1), **options).train()
    interrupted(tmp_path / "parts", event, 7 if event == "on_step_begin" else 8, **options)
    assert values(tmp_path / "parts")[:-1] == values(tmp_path / "truth")[:-1]
    assert [step for step, *_ in values(tmp_path / "parts")].count(8) > 1


@pytest.mark.slow
def test_preempted_again_in_the_pending_evaluation(tmp_path):
    """The last step's evaluation is interrupted twice; the epoch's end follows it."""
    options = {"eval_strategy": "steps", "eval_steps": 8, "logging_strategy": "epoch", "save_strategy": "no"}
    options |= {"max_steps": 8}
    make_trainer(tmp_path / "truth", Noisy(dropout=0.1), **options).train()
    with preemption.Signals() as signals:
        trainer = make_trainer(tmp_path / "parts", Noisy(dropout=0.1), **options)
        trainer.signals = signals
        trainer.callback_handler.callbacks.insert(0, SignalAt("on_prediction_step", 8))
        with pytest.raises(preemption.Preempted):
            trainer.train()
    resumed(tmp_path / "parts", "on_prediction_step", **options)
    assert values(tmp_path / "parts")[:-1] == values(tmp_path / "truth")[:-1]


@pytest.mark.slow
def test_the_checkpoint_of_a_preemption_is_deleted_later(tmp_path):
    interrupted(tmp_path, "on_step_begin", 2, **EACH_TWO)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]  # checkpoint-3 is gone


@pytest.mark.slow
def test_a_preempted_run_leaves_deletions_to_the_next_start(tmp_path, slow_disk, monkeypatch):
    monkeypatch.setattr(manager, "PREEMPTED_WAIT", 0.01)

    class Stops(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), 15)

    with preemption.Signals() as signals:
        trainer = make_trainer(tmp_path, save_total_limit=1, **EACH_TWO)
        trainer.signals = signals
        trainer.add_callback(Stops())
        with pytest.raises(preemption.Preempted, match="checkpoint-3"):
            trainer.train()
    assert sorted(name for name in os.listdir(tmp_path) if "checkpoint-" in name) == [
        ".deleting-checkpoint-2",
        "checkpoint-3",
    ]
    assert sweep(tmp_path) == [".deleting-checkpoint-2"]
