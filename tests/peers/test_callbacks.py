"""What callbacks see and may do."""

import copy
import io
import pickle

import pytest
import torch
from peer_code import At, Line, Points
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback


@pytest.mark.slow
def test_a_submodule_in_evaluation_mode_trains_again_at_the_next_step(make):
    trainer, modes = make(), []

    def freeze(args, state, control, model, **kwargs):
        modes.append(model.body.training)
        model.body.eval()

    trainer.add_callback(At("on_step_end", freeze))
    trainer.train()
    assert modes == [True] * 4


@pytest.mark.slow
def test_a_mode_set_by_hand_is_overwritten(make):
    trainer, modes = make(), []

    def freeze(args, state, control, model, **kwargs):
        modes.append(model.body[1].training)
        model.body[1].training = False

    trainer.add_callback(At("on_step_end", freeze))
    trainer.train()
    assert modes == [True] * 4


@pytest.mark.slow
def test_a_copy_of_the_model_is_a_model_of_its_own(make):
    """As callbacks that average weights make it."""
    trainer, copies = make(), []

    def average(args, state, control, model, **kwargs):
        copies.append(copy.deepcopy(model).eval())
        copies.append(pickle.load(io.BytesIO(pickle.dumps(model))).eval())
        assert model.training and model.body.training

    trainer.add_callback(At("on_step_end", average, step=2))
    trainer.train()
    assert len(copies) == 2
    for model in copies:
        assert not any(module.training for module in model.modules())
        model.train()
        assert all(module.training for module in model.modules())
        model(torch.ones(1, 4), torch.ones(1))["loss"].backward()
        model.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 1e-3])
def test_parameters_that_begin_to_train_count_in_the_norm_and_are_clipped(make, threshold):
    model, gradients = Line(), []
    for parameter in model.body.parameters():
        parameter.requires_grad_(False)
    trainer = make(model=model, max_grad_norm=threshold, max_steps=3)

    def unfreeze(args, state, control, model, **kwargs):
        for parameter in model.body.parameters():
            parameter.requires_grad_(True)

    def note(args, state, control, model, **kwargs):
        norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        gradients.append((len(norms), torch.stack(norms).norm().item()))

    trainer.add_callback(At("on_step_begin", unfreeze, step=1))
    trainer.add_callback(At("on_pre_optimizer_step", note))
    trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert [count for count, _ in gradients] == [2, 4, 4]
    if threshold:
        assert all(norm == pytest.approx(threshold, rel=1e-2) for _, norm in gradients)
    else:
        assert logged == pytest.approx([norm for _, norm in gradients], rel=1e-5)


@pytest.mark.slow
def test_a_module_added_during_training_is_trained(make):
    model = Line()
    trainer = make(
        model=model, max_steps=3, max_grad_norm=0.0, optimizers=(torch.optim.SGD(model.parameters(), 0.1), None)
    )
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer, 1.0)
    starts, norms = [], []

    def add(args, state, control, model, optimizer, **kwargs):
        model.body.append(nn.Linear(3, 3))
        starts.append(model.body[2].weight.detach().clone())
        optimizer.add_param_group({"params": list(model.body[2].parameters()), "lr": 0.1})
        optimizer.param_groups[-1].setdefault("initial_lr", 0.1)

    def note(args, state, control, model, **kwargs):
        norms.append(torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm().item())

    trainer.add_callback(At("on_step_begin", add, step=1))
    trainer.add_callback(At("on_pre_optimizer_step", note))
    trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert logged == pytest.approx(norms, rel=1e-5)
    assert not torch.equal(model.body[2].weight, starts[0])
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_on_save_sees_the_model_of_its_checkpoint(make, tmp_path):
    """Users save an adapter beside the checkpoint there."""
    trainer, steps = make(save_strategy="steps", save_steps=1, max_steps=5, num_train_epochs=9), []

    def compare(args, state, control, model, **kwargs):
        steps.append(state.global_step)
        saved = load_file(tmp_path / f"out/checkpoint-{state.global_step}/model.safetensors")
        for name, value in model.state_dict().items():
            assert torch.equal(value, saved[name]), (state.global_step, name)

    trainer.add_callback(At("on_save", compare))
    trainer.train()
    assert steps == [1, 2, 3, 4, 5]


def test_callbacks_get_on_init_end_whether_objects_or_classes(make):
    events = []

    class Early(TrainerCallback):
        def on_init_end(self, args, state, control, **kwargs):
            events.append(type(self).__name__)

    class Other(Early):
        pass

    make(callbacks=[Early, Other()])
    assert events == ["Early", "Other"]


def test_each_of_several_sets_gives_one_on_evaluate(make):
    sets, events = {"a": Points(8, seed=1), "b": Points(4, seed=2)}, []
    trainer = make(eval_dataset=sets)
    trainer.add_callback(At("on_evaluate", lambda args, state, control, metrics, **kwargs: events.append(metrics)))
    trainer.evaluate()
    assert [sorted(name for name in metrics if name.endswith("_loss")) for metrics in events] == [
        ["eval_a_loss"],
        ["eval_b_loss"],
    ]


def test_a_callback_may_remove_itself_while_several_sets_are_evaluated(make):
    trainer, events = make(eval_dataset={"a": Points(4, seed=1), "b": Points(4, seed=2)}), []

    class Once(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            events.append(metrics)
            trainer.remove_callback(self)

    trainer.add_callback(Once())
    trainer.evaluate()
    assert len(events) == 1 and "eval_a_loss" in events[0]


@pytest.mark.slow
def test_a_callback_evaluates_and_predicts_in_the_middle_of_a_step(make):
    trainer, seen = make(gradient_accumulation_steps=2), []
    plain = make(gradient_accumulation_steps=2)

    def evaluate(args, state, control, **kwargs):
        seen.append((trainer.evaluate()["eval_loss"], trainer.predict(Points(5, seed=3)).predictions.shape))

    trainer.add_callback(At("on_substep_end", evaluate, step=1))
    trainer.train()
    plain.train()
    assert len(seen) == 1 and seen[0][1] == (5,)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


@pytest.mark.slow
def test_the_train_loader_gives_callbacks_the_batches_of_the_collate_function(make):
    trainer, keys = make(), []

    def read(args, state, control, model, train_dataloader, **kwargs):
        for batch in train_dataloader:
            keys.append(sorted(batch))
            model(**batch)

    trainer.add_callback(At("on_train_begin", read))
    trainer.train()
    assert keys == [["labels", "x"]] * 4
