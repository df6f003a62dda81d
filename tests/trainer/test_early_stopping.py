"""Early stopping against a plain re-telling of its rules, and resumed runs against uninterrupted ones."""

import json
import math
import random
from types import SimpleNamespace

import pytest
from tiny_training import make_trainer
from transformers import TrainerControl, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from trainer.callbacks.early_stopping import EarlyStopping, already_stopped
from trainer.settings import EarlyStoppingConfig

DEFAULTS = {
    "monitor": "val/loss",
    "mode": "min",
    "patience": 2,
    "min_delta": 0.0,
    "check_on_train_epoch_end": False,
    "stopping_threshold": None,
    "divergence_threshold": None,
    "strict": True,
    "verbose": False,
    "check_finite": True,
    "log_rank_zero_only": False,
}


def settings(**given):
    assert set(given) <= set(DEFAULTS)
    return SimpleNamespace(**DEFAULTS | given)


def driven(values, min_epochs=None, world_size=1, rank=0, **given):
    """The check (from 1) at which the callback stops a run that is evaluated once an epoch, or None."""
    callback = EarlyStopping(settings(**given), min_epochs)
    args = SimpleNamespace(world_size=world_size, process_index=rank)
    state, control = TrainerState(is_world_process_zero=rank == 0), TrainerControl()
    callback.on_train_begin(args, state, control)
    for check, value in enumerate(values, start=1):
        state.global_step, state.epoch = 10 * check, float(check)
        callback.on_step_begin(args, state, control)
        callback.on_evaluate(args, state, control, metrics={"eval_loss": value})
        if control.should_training_stop:
            return check
    return None


def told(values, mode, patience, min_delta, stopping_threshold, divergence_threshold, check_finite, min_epochs):
    """The same from the rules' words; `max` is turned into `min` by changing all signs."""
    sign = 1 if mode == "min" else -1
    best, bad = math.inf, 0
    for check, value in enumerate(values, start=1):
        stop = check_finite and (math.isnan(value) or math.isinf(value))
        stop = stop or (stopping_threshold is not None and sign * value <= sign * stopping_threshold)
        stop = stop or (divergence_threshold is not None and sign * value > sign * divergence_threshold)
        counts = not (check_finite and math.isinf(value))
        if counts and sign * value < best - min_delta:
            best, bad = sign * value, 0
        else:
            bad += 1
        if (stop or bad >= max(patience, 1)) and check >= min_epochs:
            return check
    return None


@pytest.mark.slow
@pytest.mark.keys("early_stopping.check_finite")
def test_stops_where_the_rules_say():
    generator = random.Random(0)
    ends = []
    for _ in range(2000):
        values = [generator.choice((0.0, 0.1, 0.2, 0.3, 0.4, 0.5)) + generator.random() for _ in range(8)]
        if generator.random() < 0.2:
            values[generator.randrange(8)] = generator.choice((math.nan, math.inf, -math.inf))
        rules = {
            "mode": generator.choice(("min", "max")),
            "patience": generator.randrange(5),
            "min_delta": generator.choice((0.0, 0.1, 0.3)),
            "stopping_threshold": generator.choice((None, None, 0.05, 1.4)),
            "divergence_threshold": generator.choice((None, None, 0.05, 1.4)),
            "check_finite": generator.random() < 0.8,
        }
        min_epochs = generator.choice((0, 0, 3))
        ends.append(driven(values, min_epochs, **rules))
        assert ends[-1] == told(values, **rules, min_epochs=min_epochs), (values, rules, min_epochs)
    assert {None, 1, 2, 3, 4, 5} <= set(ends)


@pytest.mark.parametrize(
    ("values", "given", "line"),
    [
        ([3, 2.95, 2.92], {"min_delta": 0.1}, "has not improved by 0.1 for 2 checks; best 3"),
        ([3, 3], {"patience": 1}, "has not improved for 1 check; best 3"),
        ([3, 1, 4], {"patience": 9, "mode": "max", "stopping_threshold": 4}, "has reached 4: 4"),
        ([3, 7], {"divergence_threshold": 5}, "is worse than 5: 7"),
        ([3, math.nan], {"divergence_threshold": 5}, "is nan"),
        ([math.inf], {"patience": 1, "check_finite": False}, "has not improved for 1 check; no finite value so far"),
        ([math.nan], {"patience": 1, "check_finite": False}, "has not improved for 1 check; no finite value so far"),
    ],
)
def test_the_reason_is_said_once(values, given, line, capfd):
    end = driven(values, **given)
    assert end == len(values)
    assert capfd.readouterr().err == f"early stopping at step {10 * end}: eval_loss {line}\n"


def test_verbose_prints_improvements(capfd):
    driven([3, 2, 2.5], patience=9, verbose=True)
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["step 10: eval_loss improved to 3", "step 20: eval_loss improved from 3 to 2"]


def test_min_epochs_is_waited_for_once(capfd):
    assert driven([1, 2, 3, 4, 5], min_epochs=4) == 4
    waiting, stopped = capfd.readouterr().err.splitlines()
    assert waiting.startswith("early stopping waits for min_epochs (4): eval_loss has not improved for 2 checks")
    assert stopped.startswith("early stopping at step 40")
    assert driven([1, 2, 3, 0, 1, 0.5], min_epochs=4) == 6  # it got better in time: two bad checks more


@pytest.mark.keys("early_stopping.log_rank_zero_only")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("zero_only", [False, True])
def test_which_processes_speak(rank, zero_only, capfd):
    assert driven([1, 2, 3], world_size=2, rank=rank, log_rank_zero_only=zero_only) == 3
    err = capfd.readouterr().err
    if zero_only:
        assert err.startswith("early stopping at") if rank == 0 else err == ""
    else:
        assert err.startswith(f"[rank {rank}] early stopping at")


def scripted(folder, values, **options):
    """A run of 6 steps an epoch whose evaluation after step s says `values[s]`."""
    trainer = make_trainer(folder, **{"num_train_epochs": 4, "logging_steps": 1, "max_grad_norm": 0.1} | options)

    def evaluation_loop(*arguments, metric_key_prefix="eval", **keywords):
        value = values[trainer.state.global_step]
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": value}, 7)

    trainer.evaluation_loop = evaluation_loop
    return trainer


VALUES = [9.0, 5.0, 4.0, 4.5, 4.2, 3.9, 4.0, 4.1, 4.0, 3.95, 3.0, *[2.0] * 20]
EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.slow
@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("twins", [1, 2])
@pytest.mark.parametrize("kill", [4, 7])
def test_resumed_stops_where_the_uninterrupted_run_does(tmp_path, restore, twins, kill, capfd):
    """Whatever transformers restores by itself, with one callback or two that differ in their patience."""
    options = EACH_STEP | {"restore_callback_states_from_checkpoint": restore}

    def run(checkpoint=None):
        trainer = scripted(tmp_path, VALUES, **options)
        for extra in range(twins):
            trainer.add_callback(EarlyStopping(settings(patience=4 + extra)))
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = run()
    assert whole.state.global_step == 9  # best at 5, then four worse
    again = run(str(tmp_path / f"checkpoint-{kill}"))
    assert again.state.global_step == 9
    lines = [line for line in capfd.readouterr().err.splitlines() if "early stopping" in line]
    assert lines == ["early stopping at step 9: eval_loss has not improved for 4 checks; best 3.9"] * 2


@pytest.mark.slow
def test_two_on_different_metrics(tmp_path):
    trainer = scripted(tmp_path, VALUES, **EACH_STEP)
    trainer.add_callback(EarlyStopping(settings(patience=50)))
    trainer.add_callback(EarlyStopping(settings(patience=50, monitor="val_samples_per_second", mode="max")))
    trainer.train()
    stored = json.loads((tmp_path / "checkpoint-24" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert {"early_stopping: eval_loss, min, 0", "early_stopping: eval_samples_per_second, max, 0"} <= set(stored)


@pytest.mark.slow
def test_a_stopped_run_is_known_by_its_checkpoint(tmp_path):
    trainer = scripted(tmp_path, VALUES, **EACH_STEP)
    trainer.add_callback(EarlyStopping(settings(patience=2)))
    trainer.train()
    assert trainer.state.global_step == 4
    last = tmp_path / "checkpoint-4"
    assert already_stopped(last, settings(patience=2)).startswith("early stopping at step 4: eval_loss has not")
    assert already_stopped(last, settings(patience=2, monitor="eval_loss", verbose=True))
    assert already_stopped(last, settings(patience=3)) is None  # the user wants it to go on
    assert already_stopped(last, settings(patience=2, monitor="loss")) is None
    assert already_stopped(tmp_path / "checkpoint-3", settings(patience=2)) is None


@pytest.mark.slow
def test_a_callback_that_the_checkpoint_does_not_know(tmp_path, capfd):
    scripted(tmp_path, VALUES, max_steps=6, lr_scheduler_type="constant", **EACH_STEP).train()
    trainer = scripted(tmp_path, VALUES, lr_scheduler_type="constant", **EACH_STEP)
    trainer.add_callback(EarlyStopping(settings(patience=2)))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert trainer.state.global_step == 13  # best at 11, then two that are no better
    assert "early stopping: " in (line := capfd.readouterr().err) and "from 6" in line


@pytest.mark.slow
def test_only_evaluations_of_the_training_count(tmp_path):
    """Not the one before the first step, none outside `train`, and no step twice."""
    options = {"eval_strategy": "steps", "eval_steps": 6, "eval_on_start": True, "max_steps": 12}
    values = {0: 0.0, 6: 3.0, 12: 2.0}  # the untrained model looks best
    trainer = scripted(tmp_path, values, **options)
    stopping = EarlyStopping(settings(patience=1))
    trainer.add_callback(stopping)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert trainer.state.global_step == 12 and stopping.progress.best == 2.0 and stopping.progress.wait == 0


@pytest.mark.slow
def test_a_missing_metric(tmp_path, capfd):
    strict = scripted(tmp_path / "a", VALUES, **EACH_STEP)
    strict.add_callback(EarlyStopping(settings(monitor="val_accuracy")))
    with pytest.raises(ValueError, match="`early_stopping.monitor: val_accuracy` is not logged; .*eval_loss"):
        strict.train()
    lenient = scripted(tmp_path / "b", VALUES, max_steps=4, **EACH_STEP)
    lenient.add_callback(EarlyStopping(settings(monitor="val_accuracy", strict=False)))
    lenient.train()
    assert capfd.readouterr().err.count("early stopping is skipped: ") == 1


@pytest.mark.slow
def test_several_evaluation_sets(tmp_path):
    """Each set is reported under its name; the metric may be any one's."""
    trainer = scripted(tmp_path, VALUES, **EACH_STEP)
    trainer.eval_dataset = {"left": trainer.eval_dataset, "right": trainer.eval_dataset}
    trainer.add_callback(EarlyStopping(settings(monitor="val/right/loss", patience=2)))
    trainer.train()
    assert trainer.state.global_step == 4
    bare = scripted(tmp_path / "b", VALUES, **EACH_STEP)
    bare.eval_dataset = {"left": bare.eval_dataset, "right": bare.eval_dataset}
    bare.add_callback(EarlyStopping(settings(monitor="accuracy")))
    with pytest.raises(ValueError, match="eval_left_loss.*eval_loss.*eval_right_loss"):
        bare.train()


@pytest.mark.slow
def test_the_mean_loss_of_several_sets(tmp_path):
    trainer = scripted(tmp_path, VALUES, **EACH_STEP)
    trainer.eval_dataset = {"left": trainer.eval_dataset, "right": trainer.eval_dataset}
    trainer.add_callback(EarlyStopping(settings(monitor="eval_loss", patience=2)))
    trainer.train()
    lines = trainer.state.log_history
    each = {name: [line[name] for line in lines if name in line] for name in ("eval_left_loss", "eval_right_loss")}
    means = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert means == [(left + right) / 2 for left, right in zip(*each.values(), strict=True)]
    best = means.index(min(means))
    assert trainer.state.global_step == best + 3  # two checks without improvement


@pytest.mark.slow
@pytest.mark.parametrize(
    ("evaluation", "end"),
    [
        ({"eval_strategy": "steps", "eval_steps": 1}, 18),  # of steps 6, 12, 18: 4, 2, 2
        ({"eval_strategy": "epoch"}, 18),
        ({"eval_strategy": "steps", "eval_steps": 9}, 12),  # evaluated at 9 and 18; step 12 sees 9's value again
        ({"eval_strategy": "steps", "eval_steps": 9, "eval_delay": 13}, 24),  # nothing to see before step 18
    ],
)
def test_evaluations_seen_at_the_epochs_ends(tmp_path, evaluation, end):
    trainer = scripted(tmp_path, VALUES, **evaluation)
    trainer.add_callback(EarlyStopping(settings(patience=1, check_on_train_epoch_end=True)))
    trainer.train()
    assert trainer.state.global_step == end


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", [{}, {"eval_strategy": "epoch"}])
@pytest.mark.parametrize("logging", [{}, {"logging_strategy": "epoch"}, {"logging_steps": 5}])
def test_training_losses_seen_at_the_epochs_ends(tmp_path, evaluation, logging):
    """The latest logged one at the end of each epoch."""
    plain = scripted(tmp_path / "a", VALUES, **logging)
    plain.train()
    logs = [(line["step"], line["loss"]) for line in plain.state.log_history if "loss" in line]
    seen = [[loss for step, loss in logs if step <= end][-1] for end in (6, 12, 18, 24)]
    check = told(seen, "min", 1, 0.0, None, None, True, 0)

    trainer = scripted(tmp_path / "b", VALUES, **evaluation, **logging)
    stopping = EarlyStopping(settings(monitor="train/loss", patience=1, check_on_train_epoch_end=True))
    trainer.add_callback(stopping)
    trainer.train()
    assert trainer.state.global_step == 6 * (check or 4)
    assert stopping.progress.best == min(seen[: check or 4])


@pytest.mark.slow
def test_a_resumed_run_knows_what_was_logged_before(tmp_path):
    """Nothing is logged between the resume at step 11 and the epoch's end at 12, which looks back at step 10's loss."""
    stoppings = []
    for checkpoint in (None, str(tmp_path / "checkpoint-11")):
        options = {"logging_steps": 5, "save_strategy": "steps", "save_steps": 1, "max_steps": 12}
        trainer = scripted(tmp_path, VALUES, **options)
        chosen = settings(monitor="train/loss", mode="max", patience=9, check_on_train_epoch_end=True)
        stoppings.append(EarlyStopping(chosen))
        trainer.add_callback(stoppings[-1])
        trainer.train(resume_from_checkpoint=checkpoint)
    whole, resumed = stoppings
    assert whole.progress == resumed.progress and whole.progress.checked_step == 12


def test_the_direction_is_given_declared_or_required():
    assert EarlyStopping(EarlyStoppingConfig(monitor="val/loss")).direction == "min"
    assert EarlyStopping(EarlyStoppingConfig(monitor="eval_left_f1"), directions={"f1": "max"}).direction == "max"
    assert EarlyStopping(EarlyStoppingConfig(monitor="f1", mode="min"), directions={"f1": "max"}).direction == "min"
    with pytest.raises(ValueError, match=r"early_stopping\.monitor: f1.*early_stopping\.mode"):
        EarlyStopping(EarlyStoppingConfig(monitor="f1"))
