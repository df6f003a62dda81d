"""Saves beside the training: what they hold, when they are there, what happens when the disk will not take them."""

import dataclasses
import json
import os
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Regression, make_trainer
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from storage import manifest
from storage.atomic import write_text
from storage.checkpoints import checkpoints, sweep
from trainer import preemption
from trainer.callbacks.text_samples import Sampling, WriteSamples
from trainer.checkpointing import async_writer, contents, manager, pinned_staging
from trainer.checkpointing.async_writer import CheckpointWriter, Save, SavesFailed
from trainer.checkpointing.manager import CheckpointManager
from trainer.checkpointing.trainer_io import restore_rng

HIDDEN = ".deleting-checkpoint-2"
EACH_TWO = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


def made(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    return folder


def names(folder):
    return [path.name for path in checkpoints(folder)]


class Heard(TrainerCallback):
    """What there was when `on_save` was told."""

    def __init__(self, folder):
        self.folder, self.steps = folder, []

    def on_save(self, args, state, control, **kwargs):
        path = self.folder / f"checkpoint-{state.global_step}"
        assert manifest.verify(path) is None
        self.steps.append(state.global_step)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_checkpoint_is_whole_when_callbacks_hear_of_it(tmp_path, in_background):
    trainer = make_trainer(tmp_path, save_in_background=in_background, **EACH_TWO)
    heard = Heard(tmp_path)
    trainer.add_callback(heard)
    trainer.train()
    assert heard.steps == [2, 4, 6] and names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert threading.active_count() == 1 or all(not each.name.startswith("save") for each in threading.enumerate())


def test_what_is_in_it(tmp_path):
    make_trainer(tmp_path, files={"run.yaml": "a: 1\n"}, **EACH_TWO).train()
    there = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert there == {
        *("model.safetensors", "optimizer.json", "optimizer.safetensors", "scheduler.json", "rng-0.json"),
        *("trainer_state.json", "log_interval.json", "run.yaml", "manifest.json"),
    }
    content = manifest.read(tmp_path / "checkpoint-4")
    assert set(content["files"]) == there - {"manifest.json"} and content["step"] == 4
    assert (content["per_device_train_batch_size"], content["global_batch_size"], content["world_size"]) == (4, 4, 1)
    assert content["versions"]["torch"] == torch.__version__


def test_nothing_in_a_run_is_a_pickle(tmp_path):
    """A pickle begins with its protocol, a zip archive of torch.save with PK."""
    trainer = make_trainer(tmp_path, ema=None, **EACH_TWO)
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")]
    assert not [path for path in files if path.suffix in (".pt", ".pth", ".bin", ".pkl")]


def test_the_state_of_the_step_that_was_saved(tmp_path, monkeypatch):
    """However late it is written: training has gone on meanwhile."""
    truth = make_trainer(tmp_path / "truth", save_in_background=False, **EACH_TWO)
    truth.train()
    may_write, wrote = threading.Event(), async_writer.write

    def late(save):
        assert may_write.wait(20)
        wrote(save)

    class Lets(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                assert names(tmp_path / "late") == []  # two steps later it was still not there
                may_write.set()

    began, begin = {}, CheckpointWriter.begin

    def noting(writer, save):
        began[save.step] = json.loads(json.dumps(dataclasses.asdict(trainer.state)))
        begin(writer, save)

    monkeypatch.setattr(async_writer, "write", late)
    monkeypatch.setattr(CheckpointWriter, "begin", noting)
    trainer = make_trainer(tmp_path / "late", **EACH_TWO | {"logging_steps": 1})
    trainer.add_callback(Lets())
    trainer.train()
    for step in (2, 4, 6):
        for name in ("model.safetensors", "optimizer.safetensors"):
            mine, theirs = (load_file(tmp_path / run / f"checkpoint-{step}" / name) for run in ("late", "truth"))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine), (step, name)
        found = json.loads((tmp_path / f"late/checkpoint-{step}/trainer_state.json").read_text())
        assert found == began[step] and found["global_step"] == step == len(found["log_history"])


class Tied(Regression):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.linear.weight.requires_grad_(False)

    def forward(self, x, y, **context):
        self.seen += len(x)
        return super().forward(x, y)


def test_copies_are_of_now_and_what_is_frozen_is_not_copied():
    model = Tied()
    copies = pinned_staging.StagingBuffers()
    frozen = frozenset({model.linear.weight.data_ptr()})
    taken = copies.copy("model", model.state_dict(), frozen)
    assert taken["linear.weight"].data_ptr() == model.linear.weight.data_ptr()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for each in [*model.parameters(), *model.buffers()]:
            if each.data_ptr() not in frozen:
                each.add_(1)
    assert all(torch.equal(taken[name], before[name]) for name in before)
    again = copies.copy("model", model.state_dict(), frozen)
    assert all(again[name] is taken[name] for name in taken if name != "linear.weight")  # the same memory, used again
    assert torch.equal(again["norm.bias"], model.norm.bias)


def test_tied_weights_stay_tied():
    layer = nn.Linear(3, 3)
    taken = pinned_staging.StagingBuffers().copy("m", {"a": layer.weight, "b": layer.weight, "c": layer.weight[1]})
    assert taken["a"] is taken["b"] and taken["c"] is not taken["a"] and torch.equal(taken["c"], layer.weight[1])


# ---- a disk that will not ----


def failing(monkeypatch, at, error=None):
    """Saves fail at some steps, halfway."""
    original = async_writer.manifest.write

    def write(folder, *, step, **facts):
        if step in at and "saving" in folder.name:
            raise error or OSError(28, "No space left on device")
        return original(folder, step=step, **facts)

    monkeypatch.setattr(async_writer.manifest, "write", write)


@pytest.mark.parametrize("in_background", [True, False])
def test_training_goes_on_when_a_save_fails(tmp_path, monkeypatch, capfd, in_background):
    truth = make_trainer(tmp_path / "truth", max_steps=8)
    truth.train()
    failing(monkeypatch, [4, 6])
    trainer = make_trainer(
        tmp_path / "out", max_steps=8, save_strategy="steps", save_steps=2, save_in_background=in_background
    )
    trainer.train()
    assert names(tmp_path / "out") == ["checkpoint-2", "checkpoint-8"]
    assert not list((tmp_path / "out").glob(".saving*"))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("ERROR")]
    assert len(said) == 2 and "checkpoint-4 could not be saved: No space left on device (" in said[0]
    assert "checkpoint-2" in said[0] and "in a row: 1," in said[0] and "in a row: 2," in said[1]
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), truth.model.parameters(), strict=True))


def test_too_many_in_a_row_end_the_run(tmp_path, monkeypatch):
    failing(monkeypatch, [2, *range(4, 20)], OSError(30, "Read-only file system"))
    trainer = make_trainer(tmp_path, max_steps=20, save_strategy="steps", save_steps=1, max_failed_saves=2)
    with pytest.raises(SavesFailed, match="2 checkpoints .* step 5"):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]


def test_a_mistake_in_the_program_is_no_full_disk(tmp_path, monkeypatch):
    failing(monkeypatch, [2], ZeroDivisionError("a mistake"))
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        make_trainer(tmp_path, **EACH_TWO).train()
    assert names(tmp_path) == [] and not list(tmp_path.glob(".saving*"))


def test_the_best_that_could_not_be_saved_is_not_the_best(tmp_path, monkeypatch):
    failing(monkeypatch, [4])
    trainer = make_trainer(
        tmp_path, max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False, learning_rate=0.01,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")


def test_a_full_disk_does_not_lose_log_lines(tmp_path, monkeypatch, capfd):
    from trainer.callbacks import progress

    full, original = [True], progress.append

    def append(path, text):
        if full[0]:
            raise OSError(28, "No space left on device")
        original(path, text)

    class Frees(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            full[0] = 2 <= state.global_step < 4

    monkeypatch.setattr(progress, "append", append)
    full[0] = False
    trainer = make_trainer(tmp_path, max_steps=6, logging_steps=1)
    trainer.add_callback(Frees())
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert capfd.readouterr().err.count("its lines wait") == 1


def test_other_processes_parts_are_waited_for(tmp_path):
    """The first process publishes when the others' files are there; it gives up when it is told that one failed."""

    def save(**options):
        return Save(
            3, tmp_path / ".saving-checkpoint-3.h.1", tmp_path / "checkpoint-3", write, {"world_size": 2}, **options
        )

    def write(folder):
        (folder / "mine").write_text("1")

    writer, first = CheckpointWriter(), save(awaited=["theirs"])
    writer.begin(first)
    assert writer.poll() is None and writer.is_busy
    async_writer.write(Save(3, first.staged, first.final, lambda f: write_text(f / "theirs", "2"), {}, (), False))
    assert writer.poll(wait=True).error is None and manifest.verify(tmp_path / "checkpoint-3") is None
    second = save(awaited=["theirs"])
    writer.begin(second)
    second.abandoned.set()
    assert isinstance(writer.poll(wait=True).error, TimeoutError)
    assert manifest.verify(tmp_path / "checkpoint-3") is None  # the one of before stands


def test_a_run_that_lost_its_folder_writes_nothing_more(tmp_path):
    trainer = make_trainer(tmp_path, **EACH_TWO)
    trainer.locks = [type("Lock", (), {"lost": True})()]
    with pytest.raises(SavesFailed, match="another run has taken over"):
        trainer.train()
    assert names(tmp_path) == []


# ---- told to stop ----


class TellsAt(TrainerCallback):
    """Tells the run to stop when an event comes at a step."""

    def __init__(self, event, step):
        def tell(args, state, control, **kwargs):
            if state.global_step == step:
                os.kill(os.getpid(), 15)

        setattr(self, event, tell)


def test_saved_where_it_stands_even_if_only_models_are_saved(tmp_path):
    """`save_only_model` is about what is kept; what cannot go on would be no answer to a preemption."""
    with preemption.Signals() as signals:
        trainer = make_trainer(tmp_path, save_only_model=True, **EACH_TWO)
        trainer.signals = signals
        trainer.add_callback(TellsAt("on_step_begin", 2))
        with pytest.raises(preemption.Preempted, match="SIGTERM at step 3: saved checkpoint-3"):
            trainer.train()
    assert not (tmp_path / "checkpoint-2/optimizer.json").exists()
    assert (tmp_path / "checkpoint-3/optimizer.json").exists()


def test_told_to_stop_on_a_full_disk(tmp_path, monkeypatch):
    failing(monkeypatch, [3])
    with preemption.Signals() as signals:
        trainer = make_trainer(tmp_path, max_failed_saves=1, **EACH_TWO)
        trainer.signals = signals
        trainer.add_callback(TellsAt("on_step_begin", 2))
        with pytest.raises(preemption.Preempted, match="at step 3, which could not be saved"):
            trainer.train()
    assert names(tmp_path) == ["checkpoint-2"]


def test_versions_are_of_what_is_installed():
    from importlib.metadata import version

    assert contents.package_versions()["transformers"] == version("transformers")


class Noisy(Regression):
    """Draws random numbers in its evaluation too, as models that sample do; one of its terms may be infinite."""

    def forward(self, x, y, **context):
        out = super().forward(x, y)
        noise = torch.randn(()) * 0.1
        return {"loss": out["loss"] + noise * self.head.bias.sum(), "losses": {"odd": noise.detach() / 0}}


def interrupted(folder, event, step, **options):
    """A run that is told to stop, and the Trainer that went on with it."""
    with preemption.Signals() as signals:
        trainer = make_trainer(folder, Noisy(dropout=0.1), **options)
        trainer.signals = signals
        trainer.callback_handler.callbacks.insert(0, TellsAt(event, step))
        with pytest.raises(preemption.Preempted):
            trainer.train()
    return gone_on(folder, **options)


def gone_on(folder, event=None, **options):
    """Goes on with a run, and again if it is told to stop there by the first `event`."""
    with preemption.Signals() as signals:
        again = make_trainer(folder, Noisy(seed=5, dropout=0.1), **options)
        again.signals = signals
        if event is not None:
            again.callback_handler.callbacks.insert(0, TellsAt(event, checkpoints_step(folder)))
        try:
            again.train(resume_from_checkpoint=str(checkpoints(folder)[-1]))
        except preemption.Preempted:
            return gone_on(folder, **options)
    return again


def checkpoints_step(folder):
    return int(checkpoints(folder)[-1].name[11:])


def values(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("eval_loss"), line.get("loss_odd")) for line in lines]


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "logging_steps": 1, "max_steps": 8}


@pytest.mark.slow
@pytest.mark.parametrize(("event", "step"), [("on_step_begin", 3), ("on_prediction_step", 4), ("on_step_begin", 4)])
def test_evaluations_that_draw_random_numbers(tmp_path, event, step):
    truth = make_trainer(tmp_path / "truth", Noisy(dropout=0.1), **EVALUATED)
    truth.train()
    again = interrupted(tmp_path / "parts", event, step, **EVALUATED)
    assert values(tmp_path / "parts")[:-1] == values(tmp_path / "truth")[:-1]  # the last is a summary
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), truth.model.parameters(), strict=True))
    assert any(abs(float(line[3])) == float("inf") for line in values(tmp_path / "truth") if line[3] is not None)


@pytest.mark.parametrize("event", ["on_step_begin", "on_prediction_step"])
def test_the_last_step_in_the_middle_of_an_epoch(tmp_path, event):
    """transformers ends the epoch there: its evaluation and its line are still to come."""
    options = {"eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "no", "max_steps": 8}
    make_trainer(tmp_path / "truth", Noisy(dropout=0.1), **options).train()
    interrupted(tmp_path / "parts", event, 7 if event == "on_step_begin" else 8, **options)
    assert values(tmp_path / "parts")[:-1] == values(tmp_path / "truth")[:-1]
    assert [step for step, *_ in values(tmp_path / "parts")].count(8) > 1


def test_told_to_stop_again_in_what_was_left_to_do(tmp_path):
    """The last step's evaluation is left twice; the epoch's end comes after it all the same."""
    options = {"eval_strategy": "steps", "eval_steps": 8, "logging_strategy": "epoch", "save_strategy": "no"}
    options |= {"max_steps": 8}
    make_trainer(tmp_path / "truth", Noisy(dropout=0.1), **options).train()
    with preemption.Signals() as signals:
        trainer = make_trainer(tmp_path / "parts", Noisy(dropout=0.1), **options)
        trainer.signals = signals
        trainer.callback_handler.callbacks.insert(0, TellsAt("on_prediction_step", 8))
        with pytest.raises(preemption.Preempted):
            trainer.train()
    gone_on(tmp_path / "parts", "on_prediction_step", **options)
    assert values(tmp_path / "parts")[:-1] == values(tmp_path / "truth")[:-1]


def test_a_lock_lost_in_mid_training_ends_the_run(tmp_path):
    lock = type("Lock", (), {"lost": False})()

    class Loses(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            lock.lost = state.global_step >= 3

    trainer = make_trainer(tmp_path, max_steps=20, save_strategy="steps", save_steps=2)
    trainer.locks = [lock]
    trainer.add_callback(Loses())
    with pytest.raises(SavesFailed, match="another run has taken over"):
        trainer.train()
    assert trainer.state.global_step <= 5 and names(tmp_path) == ["checkpoint-2"]
    with pytest.raises(SavesFailed, match="another run has taken over"):
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()


def test_what_is_no_tensor_is_passed_on():
    taken = pinned_staging.StagingBuffers().copy("m", {"extra": {"scale": 1}, "a": torch.ones(2)})
    assert taken["extra"] == {"scale": 1} and torch.equal(taken["a"], torch.ones(2))


# ---- when callbacks hear of a save ----


class At(TrainerCallback):
    """Does something at one step's event."""

    def __init__(self, event, step, do):
        def at(args, state, control, **kwargs):
            if state.global_step == step:
                do(control)

        setattr(self, event, at)


def test_a_save_that_has_ended_is_told_at_the_next_step(tmp_path):
    """Not only when the next is due, which may be hours later."""
    trainer, heard = make_trainer(tmp_path, max_steps=8, save_strategy="steps", save_steps=3), []

    class Hears(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            heard.append((state.global_step, trainer.state.global_step))

    trainer.add_callback(Hears())
    trainer.add_callback(At("on_step_end", 4, lambda control: trainer.checkpointing.writer.thread.join(20)))
    trainer.train()
    assert heard[0] == (3, 4) and [step for step, _ in heard] == [3, 6, 8]


class Answers(TrainerCallback):
    """Asks for something whenever it hears of a save."""

    def __init__(self, word):
        self.word, self.steps = word, []

    def on_save(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)
        setattr(control, self.word, True)


def test_a_save_does_not_ask_for_the_next(tmp_path):
    """transformers forgets at the next step's begin what `on_save` asked for, and there is where ours is told."""
    trainer = make_trainer(tmp_path, max_steps=8, save_strategy="steps", save_steps=3)
    answers = Answers("should_save")
    trainer.add_callback(answers)
    trainer.add_callback(At("on_step_end", 4, lambda control: trainer.checkpointing.writer.thread.join(20)))
    trainer.train()
    assert answers.steps == [3, 6, 8] and trainer.checkpointing.number == 3


def test_whoever_ends_the_run_on_a_save_has_it_saved_once(tmp_path):
    """An epoch's end comes right after that step, and what was due at the step is done."""
    trainer = make_trainer(tmp_path, save_in_background=False, **EACH_TWO)
    answers = Answers("should_training_stop")
    trainer.add_callback(answers)
    trainer.train()
    assert answers.steps == [2] and trainer.checkpointing.number == 1 and names(tmp_path) == ["checkpoint-2"]


def test_a_lost_lock_ends_the_run_where_nothing_is_saved_for_long(tmp_path):
    lock = SimpleNamespace(lost=False)
    trainer = make_trainer(tmp_path, max_steps=8)
    trainer.locks = [lock]
    trainer.add_callback(At("on_step_begin", 3, lambda control: setattr(lock, "lost", True)))
    with pytest.raises(SavesFailed, match="another run has taken over"):
        trainer.train()
    assert trainer.state.global_step <= 5


def test_a_run_that_fails_ends_what_it_was_saving(tmp_path, monkeypatch):
    """Whoever looks once `train` has raised finds the checkpoint, and nothing that is still being written."""
    wrote = async_writer.write

    def slow(save):
        time.sleep(0.1)
        wrote(save)

    def fail(control):
        assert names(tmp_path) == []
        raise ZeroDivisionError

    monkeypatch.setattr(async_writer, "write", slow)
    trainer = make_trainer(tmp_path, **EACH_TWO)
    trainer.add_callback(At("on_step_begin", 2, fail))
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    there = os.listdir(tmp_path)
    assert "checkpoint-2" in there and not [name for name in there if name.startswith(".saving")]
    assert manifest.verify(tmp_path / "checkpoint-2") is None


def test_an_evaluation_and_an_epochs_end_at_one_step_are_saved_once(tmp_path):
    """Both want the step."""
    kept = {"monitor": "val/loss", "mode": "min", "save_top_k": -1, "save_last": True, "every_n_epochs": 1}
    trainer = make_trainer(
        tmp_path, checkpointing=SimpleNamespace(**kept), num_train_epochs=1, eval_strategy="steps", eval_steps=6
    )
    heard = Heard(tmp_path)
    trainer.add_callback(heard)
    trainer.train()
    assert heard.steps == [6] and trainer.checkpointing.number == 1


def test_a_checkpoint_that_a_stop_asked_for_goes_when_the_next_is_there(tmp_path):
    interrupted(tmp_path, "on_step_begin", 2, **EACH_TWO)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]  # checkpoint-3 is gone


class Told(Regression):
    """Its evaluations' losses are given."""

    def __init__(self, losses):
        super().__init__()
        self.losses = iter(losses)

    def forward(self, x, y, **context):
        return super().forward(x, y) if self.training else {"loss": torch.tensor(next(self.losses))}


def test_the_best_is_a_checkpoint_that_there_is(tmp_path, monkeypatch):
    """Its own save has failed, and a later one knows it as the best step all the same."""
    failing(monkeypatch, [4])
    trainer = make_trainer(
        tmp_path, Told([3.0, 1.0, 2.0]), eval_count=4, eval_strategy="steps", eval_steps=2,
        metric_for_best_model="eval_loss", greater_is_better=False, **EACH_TWO,
    )  # fmt: skip
    trainer.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"] and trainer.state.best_global_step == 4
    stored = json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text())
    assert stored["best_model_checkpoint"] == trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_every_log_is_on_disk_before_a_checkpoint_that_stands_for_its_lines(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(async_writer, "sync", lambda path: synced.append(path.name))
    trainer = make_trainer(tmp_path, csv_dir=tmp_path, save_in_background=False, **EACH_TWO)
    trainer.add_callback(WriteSamples(trainer.model, None, Sampling(1), tmp_path, seed=0))
    (tmp_path / "samples.jsonl").touch()
    trainer.train()
    assert sorted(synced) == sorted(3 * ["metrics.csv", "metrics.jsonl", "samples.jsonl"])


# ---- what comes back ----


class Counts(TrainerCallback, ExportableState):
    """One of several of its class."""

    def __init__(self, step=1):
        self.step, self.count = step, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.count += self.step

    def state(self):
        return {"args": {"step": self.step}, "attributes": {"count": self.count}}


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


def test_callbacks_of_one_class_go_on_where_they_were(tmp_path):
    options = {**EACH_TWO, "restore_callback_states_from_checkpoint": True}
    for checkpoint in (None, str(tmp_path / "checkpoint-4")):
        trainer = make_trainer(tmp_path, **options)
        for step in (1, 10):
            trainer.add_callback(Counts(step))
        trainer.train(resume_from_checkpoint=checkpoint)
    assert [each.count for each in trainer.callback_handler.callbacks if isinstance(each, Counts)] == [6, 60]
    stored = json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text())["stateful_callbacks"]
    assert len(stored["Counts"]) == 2


def test_the_scale_of_losses_goes_on_where_it_was(tmp_path):
    """A gradient scaler doubles its scale every few steps without an overflow."""

    def scaled(folder, checkpoint=None):
        trainer = make_trainer(folder, max_steps=5, save_strategy="steps", save_steps=3)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return trainer.accelerator.scaler.state_dict()

    truth = scaled(tmp_path / "truth")
    assert truth["scale"] == 16.0 and truth["_growth_tracker"] == 1
    assert scaled(tmp_path / "again", tmp_path / "truth/checkpoint-3") == truth


def test_the_last_good_checkpoint_may_be_the_one_gone_on_from(tmp_path, monkeypatch, capfd):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, lr_scheduler_type="constant").train()
    failing(monkeypatch, [4])
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4, max_steps=4, lr_scheduler_type="constant")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "checkpoint-4 could not be saved" in (said := capfd.readouterr().err)
    assert "checkpoint-2" in said


def test_an_optimizer_that_does_not_fit_is_one_line(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    stored = json.loads((checkpoint / "optimizer.json").read_text())
    groups = stored["param_groups"]
    nameless = [{key: value for key, value in each.items() if key != "params"} for each in groups]
    for changed, reason in ((nameless, ""), (groups[:1], "parameter groups")):
        (checkpoint / "optimizer.json").write_text(json.dumps({**stored, "param_groups": changed}))
        with pytest.raises(ValueError, match=f"^{checkpoint}.* {reason}") as raised:
            make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=str(checkpoint))
        assert "\n" not in str(raised.value)


def test_a_process_that_was_not_there_draws_from_a_seed_of_its_own(tmp_path, capfd):
    """Others for another process, and at another step; the same for the same."""
    (tmp_path / "rng-0.json").write_text("{}")

    def draws(process, step):
        torch.manual_seed(0)
        args = SimpleNamespace(seed=42, process_index=process, world_size=3)
        restore_rng(tmp_path, args, step)
        return float(torch.rand(()))

    drawn = [draws(process, step) for process in (1, 2) for step in (4, 8)]
    assert len({*drawn}) == 4 and drawn == [draws(process, step) for process in (1, 2) for step in (4, 8)]
    said = capfd.readouterr().err.splitlines()
    assert said == 4 * ["2 of 3 processes are new: they draw dropout from new seeds"]  # process 1 alone, each time


# ---- in a training ----

LIMITED = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


def test_deletions_do_not_delay_training(tmp_path, slow_disk):
    class Looks(TrainerCallback):
        seen = None

        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                self.seen = sorted(name for name in os.listdir(tmp_path) if "checkpoint-" in name)
                slow_disk.set()

    trainer, looks = make_trainer(tmp_path, **LIMITED), Looks()
    trainer.add_callback(looks)
    trainer.train()
    assert HIDDEN in looks.seen and "checkpoint-2" not in looks.seen and "checkpoint-4" in looks.seen
    assert [name for name in os.listdir(tmp_path) if "checkpoint-" in name] == ["checkpoint-6"]


def test_a_preempted_run_leaves_deletions_to_the_next_start(tmp_path, slow_disk, monkeypatch):
    monkeypatch.setattr(manager, "PREEMPTED_WAIT", 0.01)

    class Stops(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), 15)

    with preemption.Signals() as signals:
        trainer = make_trainer(tmp_path, **LIMITED)
        trainer.signals = signals
        trainer.add_callback(Stops())
        with pytest.raises(preemption.Preempted, match="checkpoint-3"):
            trainer.train()
    assert sorted(name for name in os.listdir(tmp_path) if "checkpoint-" in name) == [HIDDEN, "checkpoint-3"]
    assert sweep(tmp_path) == [HIDDEN]


def test_the_final_model_waits_for_deletions(tmp_path, slow_disk):
    trainer, order = make_trainer(tmp_path, **LIMITED), []
    trainer.checkpointing.deletions.delete(made(tmp_path / "checkpoint-2"))
    trainer.write_model = lambda folder, weights, final: order.append(sorted(os.listdir(tmp_path)))
    timer = threading.Timer(0.05, slow_disk.set)
    timer.start()
    trainer.save_model()
    timer.join()
    assert len(order) == 1 and HIDDEN not in order[0]


# ---- ranks that write one checkpoint together ----

FULL = OSError(28, "No space left on device")
PART = "optimizer-00002-of-00002.json"


class SharedStatus:
    """A Consensus among CheckpointManagers of one process: the maximum of what each rank last reported."""

    def __init__(self, rank, reported):
        self.rank, self.reported = rank, reported

    def all_reduce_max(self, values):
        self.reported[self.rank] = list(values)
        return [max(values) for values in zip(*self.reported.values(), strict=True)]

    all_reduce_max_async = all_reduce_max

    def broadcast_from_rank0(self, value):
        return value

    def close(self):
        pass


def of_two(folder, rank, reported, write, **more):
    """One of two ranks with a sharded optimizer state; `write` writes its files of a checkpoint."""
    args = SimpleNamespace(save_only_model=False, world_size=2, should_save=rank == 0)
    trainer = SimpleNamespace(
        is_fsdp_enabled=True, is_deepspeed_enabled=False, is_unsharded=False, signals=None, locks=[], args=args,
        checkpoint_dir=folder, store_flos=lambda: None,
        state=SimpleNamespace(global_step=2, best_model_checkpoint=None, best_global_step=None),
        model_checkpoint=SimpleNamespace(
            is_resumable=lambda step: False, save_begun=lambda *given: None, save_failed=lambda state: None
        ),
    )  # fmt: skip
    vars(trainer).update(more)
    made = CheckpointManager(trainer, in_background=True, max_failed=3)
    made.consensus = SharedStatus(rank, reported)
    made.contents = SimpleNamespace(snapshot=lambda *given: write, manifest_facts=lambda: {"world_size": 2})
    made._logs = lambda: []
    return made


def part(folder):
    write_text(folder / PART, "{}")


def whole(folder):
    write_text(folder / "model.safetensors", "x")


def full(folder):
    raise FULL


def steps(*processes):
    """Alternate step ends and step begins until all ranks know the result of the save."""
    for _ in range(4000):
        for each in processes:
            each.poll()
        for each in processes:
            each.dispatch_on_save()
        if all(each.saving_state is None for each in processes):
            return
        time.sleep(0.005)
    raise AssertionError("the result never arrives")


def left(folder, *processes):
    for each in processes:
        each.deletions.wait()
    return os.listdir(folder)


@pytest.mark.parametrize("late", [False, True])
def test_a_checkpoint_that_rank_0_cannot_write_is_deleted(tmp_path, late):
    """Whether rank 1 wrote its part before or after rank 0 failed."""
    may_write = threading.Event()

    def second_part(folder):
        assert may_write.wait(20)
        part(folder)

    reported = {}
    zero, one = of_two(tmp_path, 0, reported, full), of_two(tmp_path, 1, reported, second_part)
    zero.save()
    one.save()
    if not late:
        may_write.set()
        one.writer.thread.join()
    steps(zero, one)
    may_write.set()
    one.wait_written()
    assert left(tmp_path, zero, one) == [] and (zero.failed_in_a_row, one.failed_in_a_row) == (1, 1)
    zero.contents.snapshot = lambda *given: whole  # there is room again
    for each in (zero, one):
        each._fire_on_save = lambda state: None
        each.trainer.state.global_step = 4
        each.save()
    steps(zero, one)
    assert left(tmp_path, zero, one) == ["checkpoint-4"] and manifest.verify(tmp_path / "checkpoint-4") is None


def test_rank_1_cannot_write_its_part(tmp_path):
    reported = {}
    zero, one = of_two(tmp_path, 0, reported, whole), of_two(tmp_path, 1, reported, full)
    zero.save()
    one.save()
    steps(zero, one)
    zero.wait_written()
    assert left(tmp_path, zero, one) == []


def test_a_rank_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(async_writer, "LAST_PATIENCE", 0.01)
    zero = of_two(tmp_path, 0, {}, whole)
    zero.save()
    zero.close()
    assert left(tmp_path, zero) == []


def test_a_rank_without_a_part_creates_no_folder(tmp_path):
    """With `save_only_model`, and with DeepSpeed, whose engine writes its own files."""
    one = of_two(tmp_path, 1, {}, part)
    one.trainer.args.save_only_model = True
    engine = SimpleNamespace(save_checkpoint=lambda folder: None)
    other = of_two(tmp_path, 1, {}, part, is_fsdp_enabled=False, is_deepspeed_enabled=True, model_wrapped=engine)
    for each in (one, other):
        each.save()
        assert not each.writer.is_busy and each.saving_state is not None
    assert os.listdir(tmp_path) == []
    one.saving_state = None
    one.save(resumable=True)  # a resumable checkpoint holds all parts
    assert one.writer.poll(wait=True).error is None and len(list(tmp_path.glob(f"*/{PART}"))) == 1


def test_other_ranks_begin_after_the_deletions_of_rank_0(tmp_path, slow_disk):
    zero, named = of_two(tmp_path, 0, {}, whole), []
    zero.deletions.delete(made(tmp_path / "checkpoint-2"))
    zero.consensus.broadcast_from_rank0 = lambda value: named.append(os.listdir(tmp_path)) or value
    timer = threading.Timer(0.05, slow_disk.set)
    timer.start()
    zero.save()
    timer.join()
    zero.writer.save.abandoned.set()
    zero.wait_written()
    assert named == [[]]
