"""The lines in the terminal: which of the logged values they have."""

from types import SimpleNamespace

import pytest
from tiny_training import make_trainer

from trainer.callbacks.log_files import Console

SPEEDS = {"eval_runtime": 1.0, "eval_samples_per_second": 2.0, "eval_steps_per_second": 3.0, "epoch": 1.0}
MANY = {f"eval_f1.label{number}": 0.5 for number in range(11)}


@pytest.mark.parametrize(
    ("logs", "monitors", "shown"),
    [
        ({"eval_loss": 0.5, "eval_accuracy": 0.25}, (), {"eval_loss", "eval_accuracy"}),
        ({"test_loss": 0.5, "test_my_score": 3}, (), {"test_loss", "test_my_score"}),
        ({"eval_loss": 0.5, "eval_ap": 0.1, **MANY}, (), {"eval_loss"}),
        ({"eval_loss": 0.5, "eval_ap": 0.1, **MANY}, ("ap",), {"eval_loss", "eval_ap"}),
        ({"eval_loss": 0.5, "eval_ap": 0.1, **MANY}, ("val/f1.label3", "los"), {"eval_loss", "eval_f1.label3"}),
        ({"loss": 1.0, "mine": 2.0, "tokens": 3}, ("train/mine",), {"loss", "mine"}),
    ],
)
def test_metrics_of_an_evaluation_and_monitored_ones_are_shown(capsys, logs, monitors, shown):
    state = SimpleNamespace(is_world_process_zero=True, global_step=3, max_steps=9)
    Console(monitors).on_log(None, state, None, logs | SPEEDS)
    words = capsys.readouterr().err.split("  ")
    assert words[0] == "step 3/9" and {word.split()[0] for word in words[1:]} - {"eta"} == shown


@pytest.mark.slow
def test_the_run_says_which_checkpoint_is_the_final_model(tmp_path, capsys):
    trainer = make_trainer(
        tmp_path, max_steps=6, learning_rate=1.0, eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "final model" in line]
    assert f"checkpoint-{best} " in line and f"{losses[best]:.4g}" in line


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "steps"), [
    ({"logging_steps": 50}, [3]), ({"logging_steps": 2}, [2]), ({"logging_strategy": "no"}, []),
])  # fmt: skip
def test_a_run_that_is_shorter_than_logging_steps_logs_its_last_step(tmp_path, settings, steps):
    trainer = make_trainer(tmp_path, max_steps=3, **settings)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == steps
