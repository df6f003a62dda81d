"""Which checkpoints a run keeps: against hand-made expectations, and after kills and resumes."""

import json
import os

import pytest
from tiny_training import make_trainer
from transformers.trainer_callback import TrainerCallback, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from storage.checkpoints import checkpoints
from trainer.callbacks.checkpoint_policy import PREEMPTION
from trainer.callbacks.hooks import EveryNEpochs
from trainer.callbacks.model_checkpoint import ModelCheckpoint
from trainer.settings import CheckpointingConfig

pytestmark = pytest.mark.slow  # whole small runs, many of them

LOSSES = [9, 5, 4, 4.5, 4.2, 3.9, 4.0, 4.1, float("nan"), 3.95, 3.0, 3.5, 3.2]  # by step, up to two epochs of six
SCORES = [0, 1, 3, 2, 7, 7, 1, 2, 3, 6, 5, 4, 8]


def settings(monitor="val/loss", mode="min", save_top_k=-1, save_last=True, every_n_epochs=0):
    return CheckpointingConfig(
        monitor=monitor, mode=mode, save_top_k=save_top_k, save_last=save_last, every_n_epochs=every_n_epochs
    )


def run(folder, chosen, limit=None, checkpoint=None, extra=(), **options):
    """Two epochs of six steps, evaluated at every step by default."""
    defaults = {
        "num_train_epochs": 2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    trainer = make_trainer(folder / "out", checkpointing=chosen, save_total_limit=limit, **defaults | options)

    def evaluation_loop(*arguments, metric_key_prefix="eval", **keywords):
        step = trainer.state.global_step
        found = {"loss": LOSSES[step], "score": SCORES[step]}
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_{name}": value for name, value in found.items()}, 7)

    trainer.evaluation_loop = evaluation_loop
    trainer.callback_handler.callbacks[1:1] = extra
    trainer.train(resume_from_checkpoint=checkpoint and str(folder / "out" / checkpoint))
    return trainer


def steps(folder):
    return [int(name.split("-")[1]) for name in names_in(folder / "out")]


def names_in(folder):
    return [path.name for path in checkpoints(folder)]


def listing(folder):
    return json.loads((folder / "out" / "checkpoints.json").read_text())


def link(folder, name):
    path = folder / "out" / name
    return os.readlink(path) if path.is_symlink() else None


class SavesAt(TrainerCallback):
    """Another callback that requests saves."""

    def __init__(self, *at):
        self.at = at

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_save or state.global_step in self.at


@pytest.mark.parametrize(
    ("chosen", "limit", "left"),
    [
        # every finite evaluation, the last step's included
        (settings(), None, [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]),
        (settings(), 3, [10, 11, 12]),  # the best, 3.0, is at step 10
        (settings(), 2, [10, 12]),
        (settings(save_top_k=1, save_last=False), None, [10]),
        (settings(save_top_k=2, save_last=False), None, [10, 12]),
        (settings(save_top_k=2), None, [10, 12]),
        (settings(save_top_k=1), None, [10, 12]),  # 12 is where the training ended
        (settings(save_top_k=3), 1, [10, 11, 12]),  # the best stay whatever the limit
        (settings(save_top_k=0), None, [12]),
        (settings(save_top_k=0, save_last=False), None, []),
        (settings(save_top_k=0, save_last=False, every_n_epochs=1), None, [12]),
        (settings(save_top_k=1, save_last=False, every_n_epochs=1), None, [10, 12]),
        (settings(save_top_k=1, save_last=False, every_n_epochs=2), None, [10, 12]),
        (settings(monitor=None, every_n_epochs=1), None, [6, 12]),
        (settings(monitor=[], every_n_epochs=2, save_last=False), None, [12]),
        (settings(monitor=None, every_n_epochs=1), 1, [12]),
        (settings(monitor=None, every_n_epochs=0), None, [12]),
        (
            settings(monitor=["val_loss", "val_score"], mode=["min", "max"], save_top_k=1, save_last=False),
            None,
            [10, 12],
        ),
        (settings(monitor=["loss", "score"], mode={"loss": "max", "score": "min"}, save_top_k=1), None, [1, 12]),
    ],
)
def test_what_is_left_in_the_end(tmp_path, chosen, limit, left):
    run(tmp_path, chosen, limit)
    assert steps(tmp_path) == left
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]


def test_links_and_listing(tmp_path):
    run(tmp_path, settings(monitor=["val/score", "val/loss"], mode=["max", "min"], save_top_k=2))
    assert listing(tmp_path) == {
        "folder": ".",
        "monitors": {
            "eval_score": {
                "mode": "max",
                "best": [
                    {"checkpoint": "checkpoint-12", "step": 12, "value": 8.0},
                    {"checkpoint": "checkpoint-4", "step": 4, "value": 7.0},  # of two sevens the earlier
                ],
            },
            "eval_loss": {
                "mode": "min",
                "best": [
                    {"checkpoint": "checkpoint-10", "step": 10, "value": 3.0},
                    {"checkpoint": "checkpoint-12", "step": 12, "value": 3.2},
                ],
            },
        },
        "last": {"checkpoint": "checkpoint-12", "step": 12},
    }
    assert steps(tmp_path) == [4, 10, 12]
    links = ("best-checkpoint", "best-eval_score", "best-eval_loss", "last-checkpoint")
    assert [link(tmp_path, name) for name in links] == [f"checkpoint-{step}" for step in (12, 12, 10, 12)]
    assert (tmp_path / "out" / "best-eval_loss" / "model.safetensors").is_file()


def test_no_last_link_by_default(tmp_path):
    run(tmp_path, settings(save_top_k=1, save_last=False))
    assert link(tmp_path, "last-checkpoint") is None and link(tmp_path, "best-checkpoint") == "checkpoint-10"


def test_checkpoint_dir_outside_the_output_dir(tmp_path):
    chosen = settings(monitor=None, every_n_epochs=1)
    trainer = make_trainer(tmp_path / "out", max_steps=6, checkpointing=chosen, checkpoint_dir=tmp_path / "models")
    trainer.train()
    assert listing(tmp_path)["folder"] == os.path.join("..", "models")
    assert os.readlink(tmp_path / "models" / "last-checkpoint") == "checkpoint-6"


def test_a_file_system_without_symlinks(tmp_path, monkeypatch, capfd):
    def refuse(*arguments, **options):
        raise OSError("Operation not supported")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    run(tmp_path, settings(save_top_k=2))
    assert capfd.readouterr().err.count("Operation not supported") == 1
    assert steps(tmp_path) == [10, 12] and link(tmp_path, "best-checkpoint") is None


def test_periodic_checkpoints_go_where_the_best_are_kept(tmp_path):
    """`save_steps` or each epoch beside `save_top_k: 1`: the best and the last stay; without a best all do."""
    options = {"save_strategy": "steps", "save_steps": 3}
    run(tmp_path / "a", settings(save_top_k=1), **options)
    assert steps(tmp_path / "a") == [10, 12]
    run(tmp_path / "b", settings(save_top_k=1), save_strategy="epoch")
    assert steps(tmp_path / "b") == [10, 12]
    run(tmp_path / "c", settings(save_top_k=0), **options)
    assert steps(tmp_path / "c") == [3, 6, 9, 12]
    run(tmp_path / "d", settings(save_top_k=0), limit=2, **options)
    assert steps(tmp_path / "d") == [9, 12]


def test_checkpoints_requested_by_other_callbacks_stay_within_the_limit(tmp_path):
    run(tmp_path / "a", settings(save_top_k=1), extra=[SavesAt(2, 7)])
    assert steps(tmp_path / "a") == [2, 7, 10, 12]
    run(tmp_path / "b", settings(save_top_k=1), limit=3, extra=[SavesAt(2, 7)])
    assert steps(tmp_path / "b") == [7, 10, 12]


def test_the_end_names_the_best_if_the_final_model_is_another(tmp_path, capfd):
    run(tmp_path / "a", settings(save_top_k=1))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "load_best_model_at_end" in line]
    assert "checkpoint-10" in line and "eval_loss" in line and "step 12" in line
    run(tmp_path / "b", settings(save_top_k=1), max_steps=10)  # the last step is the best
    run(tmp_path / "c", settings(save_top_k=0))
    assert "load_best_model_at_end" not in capfd.readouterr().err


def test_a_save_at_the_epochs_last_step_holds_the_epochs_evaluation(tmp_path):
    run(tmp_path, None, eval_strategy="epoch", save_strategy="steps", save_steps=6)
    assert steps(tmp_path) == [6, 12]
    stored = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert [line["eval_loss"] for line in stored["log_history"] if "eval_loss" in line] == [4.0]


def test_save_total_limit_without_the_section(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    run(tmp_path / "a", None, **options)
    assert steps(tmp_path / "a") == [2, 4, 6, 8, 10, 12]
    run(tmp_path / "b", None, limit=2, **options)
    assert steps(tmp_path / "b") == [10, 12]
    run(tmp_path / "c", None, num_train_epochs=1)
    assert steps(tmp_path / "c") == []


def test_a_step_that_is_evaluated_twice_counts_once(tmp_path):
    run(tmp_path, settings("val_score", "max", save_top_k=2, save_last=False), extra=[EveryNEpochs(1)])
    assert [entry["step"] for entry in listing(tmp_path)["monitors"]["eval_score"]["best"]] == [12, 4]


def test_an_early_stop_is_saved(tmp_path):
    class Stops(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 6

    run(tmp_path / "a", settings(save_top_k=0), extra=[Stops()], eval_strategy="epoch")
    assert steps(tmp_path / "a") == [6]
    run(tmp_path / "b", settings(save_top_k=0), extra=[Stops()], eval_steps=7)
    assert steps(tmp_path / "b") == [7]
    run(tmp_path / "c", settings(save_top_k=0, save_last=False), extra=[Stops()], eval_strategy="epoch")
    assert steps(tmp_path / "c") == []


def test_an_unfinished_epoch_does_not_count(tmp_path):
    """Training ends in the middle of an epoch."""
    run(tmp_path, settings(monitor=None, every_n_epochs=2, save_last=False), num_train_epochs=5, max_steps=10)
    assert steps(tmp_path) == []
    run(tmp_path, settings(monitor=None, every_n_epochs=1, save_last=False), num_train_epochs=5, max_steps=10)
    assert steps(tmp_path) == [6]


CHOICES = [
    (settings(save_top_k=2), None, {}),
    (settings(save_top_k=1, every_n_epochs=1, save_last=False), None, {"save_strategy": "steps", "save_steps": 5}),
    (settings(monitor=["val_loss", "val_score"], mode=["min", "max"], save_top_k=3), 3, {}),
    (settings(save_top_k=-1), 2, {"save_strategy": "steps", "save_steps": 5}),
    (settings(save_top_k=1), None, {"restore_callback_states_from_checkpoint": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("chosen", "limit", "options"), CHOICES)
@pytest.mark.parametrize("kill", [5, 6])
def test_resumed_keeps_what_the_uninterrupted_run_keeps(tmp_path, chosen, limit, options, kill):
    run(tmp_path / "whole", chosen, limit, **options)

    class Dies(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == kill + 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", chosen, limit, extra=[Dies()], **options)
    there = steps(tmp_path / "parts")
    run(tmp_path / "parts", chosen, limit, checkpoint=f"checkpoint-{there[-1]}", **options)
    assert steps(tmp_path / "parts") == steps(tmp_path / "whole")
    assert listing(tmp_path / "parts") == listing(tmp_path / "whole")


def test_a_monitor_without_values_in_the_checkpoint(tmp_path, capfd):
    run(tmp_path, settings(save_top_k=2), max_steps=5)
    run(tmp_path, settings(monitor="val_score", mode="max", save_top_k=1), checkpoint="checkpoint-5")
    assert "val_score (max)" in (line := capfd.readouterr().err) and "step 5" in line
    assert listing(tmp_path)["monitors"]["eval_score"]["best"][0]["step"] == 12


def test_missing_metrics(tmp_path, capfd):
    with pytest.raises(ValueError, match="`checkpointing.monitor: val_acuracy`"):
        run(tmp_path / "a", settings(monitor=["loss", "val_acuracy"]))
    run(tmp_path / "b", settings(save_top_k=1), eval_strategy="no")
    assert "val/loss" in capfd.readouterr().err


def test_monitors_of_several_evaluation_sets(tmp_path):
    """Each set is reported on its own, the monitors belong to different ones; training's values work too."""
    chosen = settings(
        monitor=["val/left/loss", "val/right/score", "train/loss"], mode=["min", "max", "min"], save_top_k=1
    )
    options = {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1}
    trainer = make_trainer(tmp_path / "out", checkpointing=chosen, **options)
    trainer.eval_dataset = {"left": trainer.eval_dataset, "right": trainer.eval_dataset}

    def evaluation_loop(*arguments, metric_key_prefix, **keywords):
        step = trainer.state.global_step
        found = {"loss": LOSSES[step]} if "left" in metric_key_prefix else {"score": SCORES[step]}
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_{name}": each for name, each in found.items()}, 7)

    trainer.evaluation_loop = evaluation_loop
    trainer.train()
    losses = {line["step"]: line["loss"] for line in trainer.state.log_history if "loss" in line}
    best = {name: entry["best"][0]["step"] for name, entry in listing(tmp_path)["monitors"].items()}
    assert best == {"eval_left_loss": 5, "eval_right_score": 4, "loss": min(losses, key=losses.get)}


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"monitor": ["a", "b"], "mode": ["min"]}, "`mode`"),
        ({"monitor": ["a"], "mode": {"b": "min"}}, "`mode`"),
        ({"monitor": None, "save_top_k": 2}, "`save_top_k: 2`"),
    ],
)
def test_settings_that_do_not_fit(given, key):
    with pytest.raises(ValueError, match=key):
        settings(**given)


def test_modes_are_in_the_monitors_order():
    assert list(settings(monitor=["b", "a"], mode={"a": "min", "b": "max"}).modes.items()) == [
        ("b", "max"),
        ("a", "min"),
    ]


def test_a_deferred_save_belongs_to_whoever_requested_it(tmp_path):
    """What a callback after this one requested is not deleted like this callback's own checkpoints."""
    for requested_at, reason in ((-1, "requested"), (3, "policy")):
        callback, state = ModelCheckpoint(settings(save_top_k=1), tmp_path), TrainerState(global_step=3, epoch=1.0)
        callback.requested_at = requested_at
        callback.defer_save(state)
        callback.save_begun(state)
        assert [checkpoint.reason for checkpoint in callback.checkpoints] == [reason] and callback.deferred_at == 3


def test_a_second_save_of_a_step_keeps_the_stronger_reason(tmp_path):
    callback, state = ModelCheckpoint(settings(), tmp_path), TrainerState(global_step=3, epoch=1.0)
    for is_preemption, reason in ((True, PREEMPTION), (False, "requested"), (True, "requested")):
        callback.save_begun(state, is_preemption)
        assert [checkpoint.reason for checkpoint in callback.checkpoints] == [reason]
    assert callback.is_resumable(3) and not callback.is_resumable(2)
    callback.save_failed(state)
    assert callback.checkpoints == []
