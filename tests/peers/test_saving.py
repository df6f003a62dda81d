"""Saves, preemptions and resumes; what only Keel's Trainer can do is run with it alone."""

import os

import pytest
import torch
from peer_code import At, Line, Points, Stream

from storage.checkpoints import checkpoints
from trainer import preemption
from trainer.trainer import Trainer

pytestmark = pytest.mark.slow

KEEL_ONLY = pytest.mark.parametrize("peer", [Trainer])
BEST = {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": False}


def names(folder):
    return [path.name for path in checkpoints(folder)]


def request_save(args, state, control, **kwargs):
    control.should_save = True


@KEEL_ONLY
@pytest.mark.parametrize("evaluations", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps", "eval_steps": 4}])
def test_a_requested_save_is_written_with_save_strategy_best(make, tmp_path, evaluations):
    """Although the evaluation of the epoch's end, which follows, is worse than the first one."""
    trainer = make(max_steps=8, learning_rate=0.0, **BEST, **evaluations)
    trainer.add_callback(At("on_step_end", request_save, step=8))
    trainer.train()
    assert names(tmp_path / "out") == ["checkpoint-4", "checkpoint-8"]
    assert trainer.state.best_global_step == 4


def test_the_best_step_has_a_checkpoint(make, tmp_path):
    """It is the epoch's last step, which is evaluated twice."""
    trainer = make(eval_strategy="steps", eval_steps=4, **BEST)

    def evaluate(args, state, control, **kwargs):
        control.should_evaluate = True

    trainer.add_callback(At("on_epoch_end", evaluate))
    trainer.train()
    assert names(tmp_path / "out") == [f"checkpoint-{trainer.state.best_global_step}"] == ["checkpoint-4"]


@KEEL_ONLY
@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end", "on_log", "on_evaluate"])
@pytest.mark.parametrize("kind", ["evaluate", "predict"])
def test_an_evaluation_of_a_callback_is_not_left_early(make, tmp_path, event, kind):
    """The signal comes while a callback evaluates: the save follows at the step's end."""
    with preemption.Signals() as signals:
        trainer = make(eval_strategy="steps", eval_steps=2, max_steps=6, save_steps=3)
        trainer.signals, done = signals, []

        def evaluate(args, state, control, **kwargs):
            if not done:
                done.append("begun")
                os.kill(os.getpid(), 15)
                result = trainer.evaluate() if kind == "evaluate" else trainer.predict(Points(8)).metrics
                done.append(len(result))

        trainer.add_callback(At(event, evaluate, step=2))
        with pytest.raises(preemption.Preempted) as preempted:
            trainer.train()
    assert done[0] == "begun" and done[1] > 0
    # The signal came too late for the end of step 2 where that step's own evaluation follows or is not made any more.
    step = 2 if (event, kind) == ("on_log", "predict") or event == "on_step_end" else 3
    assert names(tmp_path / "out") == [f"checkpoint-{step}"] and f"saved checkpoint-{step}" in str(preempted.value)


@KEEL_ONLY
@pytest.mark.parametrize("sets", [1, 2])
def test_the_loops_own_evaluation_is_left_early(make, tmp_path, sets):
    batches = []
    with preemption.Signals() as signals:
        data = Points(32, seed=1) if sets == 1 else {"a": Points(32, seed=1), "b": Points(32, seed=1)}
        trainer = make(eval_dataset=data, eval_strategy="steps", eval_steps=2, max_steps=6)
        trainer.signals = signals

        def stop(args, state, control, **kwargs):
            batches.append(state.global_step)
            if len(batches) == 8 * (sets - 1) + 1:
                os.kill(os.getpid(), 15)

        trainer.callback_handler.callbacks.insert(0, At("on_prediction_step", stop))
        with pytest.raises(preemption.Preempted):
            trainer.train()
    assert len(batches) < 8 * sets and names(tmp_path / "out") == ["checkpoint-2"]


@KEEL_ONLY
@pytest.mark.parametrize("step", [3, 5, 6, 9])
def test_streaming_data_resume_where_they_stood(make, step):
    """20 samples make passes of 5 batches."""
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": step, "lr_scheduler_type": "constant"}
    whole = make(train_dataset=Stream(), **settings)
    whole.train()
    again = make(train_dataset=Stream(), model=Line(seed=5), **settings)
    again.train(resume_from_checkpoint=f"{again.args.output_dir}/checkpoint-{step}")
    assert len(again.model.seen) == 12 - step
    for left, right in zip(again.model.seen, whole.model.seen[step:], strict=True):
        assert torch.equal(left, right)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


@KEEL_ONLY
def test_a_resumed_run_with_a_given_optimizer_and_scheduler(make):
    def build(seed):
        model = Line(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
        return make(model=model, optimizers=(optimizer, scheduler), **settings)

    whole = build(0)
    whole.train()
    again = build(5)
    again.train(resume_from_checkpoint=f"{again.args.output_dir}/checkpoint-3")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


@KEEL_ONLY
def test_nonfinite_gradients_of_parameters_that_begin_to_train_are_skipped(make):
    model = Line()
    for parameter in model.body.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make(model=model, optimizers=(optimizer, None), max_steps=3, max_grad_norm=0.0)
    shown, before = [], model.head.weight.detach().clone()
    trainer.guard.show = shown.append

    def unfreeze(args, state, control, model, **kwargs):
        model.body[0].weight.requires_grad_(True)
        model.body[0].weight.register_hook(lambda gradient: gradient * float("nan"))

    trainer.add_callback(At("on_step_begin", unfreeze, step=0))
    trainer.train()
    assert len(shown) == 3 and torch.equal(model.head.weight, before)
