"""Arguments of the constructor, TrainingArguments, and what is returned."""

import dataclasses

import numpy as np
import pytest
import torch
from peer_code import At, Line, Points


def test_predict_returns_outputs_labels_and_metrics(make):
    def score(prediction):
        return {"error": float(np.abs(prediction.predictions - prediction.label_ids).mean())}

    trainer, data = make(compute_metrics=score), Points(7, seed=5)
    result = trainer.predict(data)
    expected = trainer.model.eval()(data.x)["prediction"].detach()
    assert np.allclose(result.predictions, expected, atol=1e-6) and np.allclose(result.label_ids, data.y)
    assert result.metrics["test_error"] == pytest.approx((expected - data.y).abs().mean().item(), rel=1e-5)
    assert result.metrics["test_loss"] == pytest.approx(((expected - data.y) ** 2).mean().item(), rel=1e-5)


def test_predict_without_labels_has_no_loss(make):
    result = make().predict(Points(7, labelled=False))
    assert result.predictions.shape == (7,) and result.label_ids is None and "test_loss" not in result.metrics


@pytest.mark.slow
def test_metrics_of_an_evaluation_in_training(make):
    def score(prediction):
        return {"largest": float(prediction.predictions.max())}

    trainer = make(compute_metrics=score, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_largest" in entry] == [2, 4]


def test_metrics_get_losses_and_inputs_on_request(make):
    shapes = []

    def score(prediction):
        shapes.append((prediction.inputs.shape, prediction.losses.shape))
        return {}

    model = Line()
    model.main_input_name = "x"
    make(model=model, compute_metrics=score, include_for_metrics=["inputs", "loss"]).evaluate()
    assert shapes == [((8, 4), (8,))]


@pytest.mark.slow
def test_given_arguments_are_left_alone(make, arguments):
    args = arguments(save_total_limit=1, eval_on_start=True, eval_strategy="steps", eval_steps=2, save_strategy="steps",
                     save_steps=2, metric_for_best_model="loss")  # fmt: skip
    before = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    trainer = make(args=args)
    assert trainer.args is args
    trainer.train()
    assert {name: getattr(args, name) for name in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"learning_rate": 0.5}, {"max_steps": 2}, {"lr_scheduler_type": "constant"}])
def test_arguments_are_read_when_training_begins(make, changed):
    late = make(logging_strategy="steps")
    for name, value in changed.items():
        setattr(late.args, name, value)
    early = make(logging_strategy="steps", **changed)
    for trainer in (late, early):
        trainer.train()
    rates = [
        [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (late, early)
    ]
    assert rates[0] == pytest.approx(rates[1]) and len(rates[0]) == early.args.max_steps
    for name, value in early.model.state_dict().items():
        assert torch.equal(value, late.model.state_dict()[name]), name


@pytest.mark.slow
def test_a_limit_of_checkpoints_that_is_set_late_is_kept(make, tmp_path):
    trainer = make(save_strategy="steps", save_steps=1)
    trainer.args.save_total_limit = 2
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.slow
def test_an_evaluation_on_start_that_is_set_late_is_made(make):
    trainer = make()
    trainer.args.eval_on_start = True
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [0]


@pytest.mark.slow
def test_given_optimizer_and_scheduler_are_used(make):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    trainer = make(model=model, optimizers=(optimizer, scheduler), save_strategy="steps", save_steps=2)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer and trainer.lr_scheduler is scheduler
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert scheduler.get_last_lr() == pytest.approx([0.3 / 16]) and rates == pytest.approx([0.3, 0.15, 0.075, 0.0375])


@pytest.mark.slow
def test_a_given_optimizer_alone_gets_the_schedule_of_the_arguments(make):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    trainer = make(model=model, optimizers=(optimizer, None))
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.3, 0.225, 0.15, 0.075])


@pytest.mark.slow
def test_an_optimizer_by_class_and_options(make):
    trainer = make(optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.2, "momentum": 0.5}))
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is torch.optim.SGD
    assert {(group["initial_lr"], group["momentum"]) for group in optimizer.param_groups} == {(0.2, 0.5)}


@pytest.mark.slow
def test_a_subclass_creates_its_own_optimizer(make, peer):
    class Plain(peer):
        def create_optimizer(self, model=None):
            if self.optimizer is None:
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.125)
            return self.optimizer

    trainer = make(kind=Plain)
    trainer.train()
    assert type(trainer.optimizer.optimizer) is torch.optim.SGD
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.125


@pytest.mark.slow
def test_model_init_makes_a_new_model_for_each_training(make):
    made = []

    def build():
        made.append(Line(seed=7))
        return made[-1]

    trainer = make(model_init=build)
    results = []
    for _ in range(2):
        trainer.train()
        assert trainer.model is made[-1]
        results.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert len(made) == 3 and not torch.equal(results[0]["head.weight"], Line(seed=7).head.weight)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.slow
def test_resume_from_the_newest_checkpoint(make):
    settings = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    make(max_steps=6, **settings).train()
    again = make(max_steps=8, model=Line(seed=3), **settings)
    starts = []
    again.add_callback(At("on_train_begin", lambda args, state, control, **kwargs: starts.append(state.global_step)))
    again.train(resume_from_checkpoint=True)
    assert starts == [6] and again.state.global_step == 8


def test_there_is_no_checkpoint_to_resume_from(make):
    with pytest.raises(ValueError):
        make().train(resume_from_checkpoint=True)


class Counted(Line):
    main_input_name = "x"

    def num_parameters(self, exclude_embeddings=False):
        return sum(parameter.numel() for parameter in self.parameters())


@pytest.mark.slow
def test_operations_are_counted(make):
    trainer = make(model=Counted())
    trainer.train()
    parameters = 4 * 3 + 3 + 3 + 1
    assert trainer.state.total_flos == trainer.state.log_history[-1]["total_flos"] == 6 * parameters * 4 * 16
