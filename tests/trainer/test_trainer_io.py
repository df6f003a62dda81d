"""What a resume restores: callback states, the loss scale, the optimizer, random number generators."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_training import make_trainer
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from trainer.checkpointing import async_writer
from trainer.checkpointing.trainer_io import restore_rng

EACH_TWO = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


class Counts(TrainerCallback, ExportableState):
    """One of several callbacks of one class."""

    def __init__(self, step=1):
        self.step, self.count = step, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.count += self.step

    def state(self):
        return {"args": {"step": self.step}, "attributes": {"count": self.count}}


@pytest.mark.slow
def test_callbacks_of_one_class_have_a_state_each(tmp_path):
    trainer = make_trainer(tmp_path, **EACH_TWO)
    for step in (1, 10):
        trainer.add_callback(Counts(step))
    trainer.train()
    stored = json.loads((tmp_path / "checkpoint-4/trainer_state.json").read_text())["stateful_callbacks"]
    assert stored["Counts"] == [
        {"args": {"step": 1}, "attributes": {"count": 4}},
        {"args": {"step": 10}, "attributes": {"count": 40}},
    ]


@pytest.mark.slow
def test_callbacks_of_one_class_are_restored(tmp_path):
    options = {**EACH_TWO, "restore_callback_states_from_checkpoint": True}
    for checkpoint in (None, str(tmp_path / "checkpoint-4")):
        trainer = make_trainer(tmp_path, **options)
        for step in (1, 10):
            trainer.add_callback(Counts(step))
        trainer.train(resume_from_checkpoint=checkpoint)
    assert [callback.count for callback in trainer.callback_handler.callbacks if isinstance(callback, Counts)] == [
        6,
        60,
    ]
    stored = json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text())["stateful_callbacks"]
    assert len(stored["Counts"]) == 2


@pytest.mark.slow
def test_the_loss_scale_is_restored(tmp_path):
    """A gradient scaler doubles its scale every few steps without an overflow."""

    def scaled(folder, checkpoint=None):
        trainer = make_trainer(folder, max_steps=5, save_strategy="steps", save_steps=3)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return trainer.accelerator.scaler.state_dict()

    truth = scaled(tmp_path / "truth")
    assert truth["scale"] == 16.0 and truth["_growth_tracker"] == 1
    assert scaled(tmp_path / "again", tmp_path / "truth/checkpoint-3") == truth


@pytest.mark.slow
def test_the_last_complete_checkpoint_may_be_the_resumed_one(tmp_path, monkeypatch, capfd):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, lr_scheduler_type="constant").train()

    def publish(staged, final):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(async_writer, "publish", publish)
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4, max_steps=4, lr_scheduler_type="constant")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "checkpoint-4" in (line := capfd.readouterr().err) and "checkpoint-2" in line


@pytest.mark.slow
def test_an_optimizer_state_that_does_not_fit(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    stored = json.loads((checkpoint / "optimizer.json").read_text())
    groups = stored["param_groups"]
    nameless = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    for changed, reason in ((nameless, ""), (groups[:1], "parameter groups")):
        (checkpoint / "optimizer.json").write_text(json.dumps({**stored, "param_groups": changed}))
        with pytest.raises(ValueError, match=f"^{checkpoint}.* {reason}") as raised:
            make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=str(checkpoint))
        assert "\n" not in str(raised.value)


def test_a_new_rank_has_its_own_seed(tmp_path, capfd):
    """It depends on the rank and the step."""
    (tmp_path / "rng-0.json").write_text("{}")

    def draws(process, step):
        torch.manual_seed(0)
        args = SimpleNamespace(seed=42, process_index=process, world_size=3)
        restore_rng(tmp_path, args, step)
        return float(torch.rand(()))

    drawn = [draws(process, step) for process in (1, 2) for step in (4, 8)]
    assert len({*drawn}) == 4 and drawn == [draws(process, step) for process in (1, 2) for step in (4, 8)]
    assert capfd.readouterr().err.count("2 of 3") == 4  # printed by rank 1 only
