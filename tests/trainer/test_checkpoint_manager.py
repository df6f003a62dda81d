"""Saving in the background: content, the time of `on_save`, failing disks, and ranks that write together."""

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
from transformers import TrainerCallback

from storage import manifest
from storage.atomic import write_text
from storage.checkpoints import checkpoints
from trainer.callbacks.text_samples import WriteSamples
from trainer.checkpointing import async_writer, contents
from trainer.checkpointing.async_writer import CheckpointWriter, SavesFailed
from trainer.checkpointing.manager import CheckpointManager
from trainer.settings import CheckpointingConfig

HIDDEN = ".deleting-checkpoint-2"
EACH_TWO = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


def made(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    return folder


def names(folder):
    return [path.name for path in checkpoints(folder)]


class RecordsSaves(TrainerCallback):
    """The steps of `on_save`; each checkpoint must be complete then."""

    def __init__(self, folder):
        self.folder, self.steps = folder, []

    def on_save(self, args, state, control, **kwargs):
        path = self.folder / f"checkpoint-{state.global_step}"
        assert manifest.verify(path) is None
        self.steps.append(state.global_step)


@pytest.mark.slow
@pytest.mark.parametrize("in_background", [True, False])
def test_a_checkpoint_is_complete_when_on_save_is_fired(tmp_path, in_background):
    trainer = make_trainer(tmp_path, save_in_background=in_background, **EACH_TWO)
    recorder = RecordsSaves(tmp_path)
    trainer.add_callback(recorder)
    trainer.train()
    assert recorder.steps == [2, 4, 6] and names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert threading.active_count() == 1 or all(not each.name.startswith("save") for each in threading.enumerate())


@pytest.mark.slow
def test_files_and_manifest(tmp_path):
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


@pytest.mark.slow
def test_no_file_of_a_run_is_a_pickle(tmp_path):
    """A pickle starts with its protocol, a zip archive of torch.save with PK."""
    trainer = make_trainer(tmp_path, ema=None, **EACH_TWO)
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")]
    assert not [path for path in files if path.suffix in (".pt", ".pth", ".bin", ".pkl")]


@pytest.mark.slow
def test_a_late_save_holds_the_state_of_its_step(tmp_path, monkeypatch):
    """Training continues before the checkpoint is written."""
    truth = make_trainer(tmp_path / "truth", save_in_background=False, **EACH_TWO)
    truth.train()
    may_write, write = threading.Event(), async_writer.write

    def late(save):
        assert may_write.wait(20)
        write(save)

    class Allows(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                assert names(tmp_path / "late") == []
                may_write.set()

    began, begin = {}, CheckpointWriter.begin

    def noting(writer, save):
        began[save.step] = json.loads(json.dumps(dataclasses.asdict(trainer.state)))
        begin(writer, save)

    monkeypatch.setattr(async_writer, "write", late)
    monkeypatch.setattr(CheckpointWriter, "begin", noting)
    trainer = make_trainer(tmp_path / "late", **EACH_TWO | {"logging_steps": 1})
    trainer.add_callback(Allows())
    trainer.train()
    for step in (2, 4, 6):
        for name in ("model.safetensors", "optimizer.safetensors"):
            mine, theirs = (load_file(tmp_path / run / f"checkpoint-{step}" / name) for run in ("late", "truth"))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine), (step, name)
        found = json.loads((tmp_path / f"late/checkpoint-{step}/trainer_state.json").read_text())
        assert found == began[step] and found["global_step"] == step == len(found["log_history"])


# ---- failing disks ----


def failing(monkeypatch, at, error=None):
    """Saves of the steps `at` fail when the manifest is written."""
    original = async_writer.manifest.write

    def write(folder, *, step, **facts):
        if step in at and "saving" in folder.name:
            raise error or OSError(28, "No space left on device")
        return original(folder, step=step, **facts)

    monkeypatch.setattr(async_writer.manifest, "write", write)


@pytest.mark.slow
@pytest.mark.parametrize("in_background", [True, False])
def test_training_continues_when_a_save_fails(tmp_path, monkeypatch, capfd, in_background):
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


@pytest.mark.slow
def test_too_many_failures_in_a_row_end_the_run(tmp_path, monkeypatch):
    failing(monkeypatch, [2, *range(4, 20)], OSError(30, "Read-only file system"))
    trainer = make_trainer(tmp_path, max_steps=20, save_strategy="steps", save_steps=1, max_failed_saves=2)
    with pytest.raises(SavesFailed, match="2 checkpoints .* step 5"):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]


@pytest.mark.slow
def test_a_bug_is_not_a_failed_save(tmp_path, monkeypatch):
    failing(monkeypatch, [2], ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        make_trainer(tmp_path, **EACH_TWO).train()
    assert names(tmp_path) == [] and not list(tmp_path.glob(".saving*"))


@pytest.mark.slow
def test_a_best_step_that_could_not_be_saved_is_not_loaded(tmp_path, monkeypatch):
    failing(monkeypatch, [4])
    trainer = make_trainer(
        tmp_path, max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False, learning_rate=0.01,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")


@pytest.mark.slow
def test_a_full_disk_does_not_lose_log_lines(tmp_path, monkeypatch, capfd):
    from trainer.callbacks import log_files

    full, original = [True], log_files.append

    def append(path, text):
        if full[0]:
            raise OSError(28, "No space left on device")
        original(path, text)

    class Frees(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            full[0] = 2 <= state.global_step < 4

    monkeypatch.setattr(log_files, "append", append)
    full[0] = False
    trainer = make_trainer(tmp_path, max_steps=6, logging_steps=1)
    trainer.add_callback(Frees())
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert capfd.readouterr().err.count("its lines wait") == 1


def test_package_versions():
    from importlib.metadata import version

    assert contents.package_versions()["transformers"] == version("transformers")


@pytest.mark.slow
def test_a_lost_lock_ends_the_run(tmp_path):
    lock = type("Lock", (), {"lost": False})()

    class Loses(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            lock.lost = state.global_step >= 3

    trainer = make_trainer(tmp_path, max_steps=20, save_strategy="steps", save_steps=2)
    trainer.locks = [lock]
    trainer.add_callback(Loses())
    with pytest.raises(SavesFailed, match="another run"):
        trainer.train()
    assert trainer.state.global_step <= 5 and names(tmp_path) == ["checkpoint-2"]
    with pytest.raises(SavesFailed, match="another run"):
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()


# ---- when `on_save` is fired ----


class At(TrainerCallback):
    """Calls a function at an event of one step."""

    def __init__(self, event, step, do):
        def at(args, state, control, **kwargs):
            if state.global_step == step:
                do(control)

        setattr(self, event, at)


@pytest.mark.slow
def test_on_save_is_fired_at_the_next_step(tmp_path):
    """Not only when the next checkpoint is due; what listens is no callback of the user's, which waits for it."""
    trainer, fired = make_trainer(tmp_path, max_steps=8, save_strategy="steps", save_steps=3), []
    original = trainer.model_checkpoint.on_save

    def on_save(args, state, control, **kwargs):
        fired.append((state.global_step, trainer.state.global_step))
        original(args, state, control, **kwargs)

    trainer.model_checkpoint.on_save = on_save
    trainer.add_callback(At("on_step_end", 4, lambda control: trainer.checkpointing.writer.thread.join(20)))
    trainer.train()
    assert fired[0] == (3, 4) and [step for step, _ in fired] == [3, 6, 8]


class SetsControl(TrainerCallback):
    """Sets a flag of the TrainerControl in `on_save`."""

    def __init__(self, word):
        self.word, self.steps = word, []

    def on_save(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)
        setattr(control, self.word, True)


@pytest.mark.slow
def test_should_save_in_on_save_is_ignored(tmp_path):
    """transformers resets the flag at the next step's begin."""
    trainer = make_trainer(tmp_path, max_steps=8, save_strategy="steps", save_steps=3)
    callback = SetsControl("should_save")
    trainer.add_callback(callback)
    trainer.train()
    assert callback.steps == [3, 6, 8] and trainer.checkpointing.number == 3


@pytest.mark.slow
def test_a_callback_that_stops_training_in_on_save(tmp_path):
    """The epoch ends right after that step, which is saved once."""
    trainer = make_trainer(tmp_path, save_in_background=False, **EACH_TWO)
    callback = SetsControl("should_training_stop")
    trainer.add_callback(callback)
    trainer.train()
    assert callback.steps == [2] and trainer.checkpointing.number == 1 and names(tmp_path) == ["checkpoint-2"]


@pytest.mark.slow
def test_a_run_that_fails_completes_its_save(tmp_path, monkeypatch):
    """When `train` raises, the checkpoint is complete and nothing is being written."""
    write = async_writer.write

    def slow(save):
        time.sleep(0.1)
        write(save)

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


@pytest.mark.slow
def test_an_evaluation_and_an_epoch_end_at_one_step_are_saved_once(tmp_path):
    kept = {"monitor": "val/loss", "mode": "min", "save_top_k": -1, "save_last": True, "every_n_epochs": 1}
    trainer = make_trainer(
        tmp_path, checkpointing=CheckpointingConfig(**kept), num_train_epochs=1, eval_strategy="steps", eval_steps=6
    )
    recorder = RecordsSaves(tmp_path)
    trainer.add_callback(recorder)
    trainer.train()
    assert recorder.steps == [6] and trainer.checkpointing.number == 1


class FixedLosses(Regression):
    """Its evaluation losses are given."""

    def __init__(self, losses):
        super().__init__()
        self.losses = iter(losses)

    def forward(self, x, y, **context):
        return super().forward(x, y) if self.training else {"loss": torch.tensor(next(self.losses))}


@pytest.mark.slow
def test_best_model_checkpoint_exists(tmp_path, monkeypatch):
    """The best step's save has failed, so the previous best checkpoint stays the best."""
    failing(monkeypatch, [4])
    trainer = make_trainer(
        tmp_path, FixedLosses([3.0, 1.0, 2.0]), eval_count=4, eval_strategy="steps", eval_steps=2,
        metric_for_best_model="eval_loss", greater_is_better=False, **EACH_TWO,
    )  # fmt: skip
    trainer.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"] and trainer.state.best_global_step == 4
    stored = json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text())
    assert stored["best_model_checkpoint"] == trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


@pytest.mark.slow
def test_logs_are_synced_before_a_checkpoint_is_published(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(async_writer, "sync", lambda path: synced.append(path.name))
    trainer = make_trainer(tmp_path, csv_dir=tmp_path, save_in_background=False, **EACH_TWO)
    trainer.add_callback(WriteSamples(trainer.model, lambda model, seed: [], tmp_path, seed=0))
    (tmp_path / "samples.jsonl").touch()
    trainer.train()
    assert sorted(synced) == sorted(3 * ["metrics.csv", "metrics.jsonl", "samples.jsonl"])


# ---- deletions ----

LIMITED = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


@pytest.mark.slow
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
        for process in processes:
            process.poll()
        for each in processes:
            each.dispatch_on_save()
        if all(each.saving_state is None for each in processes):
            return
        time.sleep(0.005)
    raise AssertionError("the result never arrives")


def left(folder, *processes):
    for process in processes:
        process.deletions.wait()
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
