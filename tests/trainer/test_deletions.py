"""What is no longer wanted goes beside the training, and leaves nothing behind, of failed saves neither."""

import os
import threading
import time
from types import SimpleNamespace

import pytest
from tiny_training import make_trainer
from transformers import TrainerCallback

from storage import manifest
from storage.atomic import write_text
from storage.checkpoints import sweep
from trainer import preemption
from trainer.checkpointing import async_writer, deletions, manager
from trainer.checkpointing.async_writer import CheckpointWriter, Save
from trainer.checkpointing.deletions import Deletions
from trainer.checkpointing.manager import Checkpointing

HIDDEN = ".deleting-checkpoint-2"
FACTS = {"world_size": 1}


def made(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    return folder


@pytest.fixture
def slow_disk(monkeypatch):
    """Deletions wait until they are let go on."""
    let, discard = threading.Event(), deletions.discard

    def late(path):
        let.wait(20)
        discard(path)

    monkeypatch.setattr(deletions, "discard", late)
    yield let
    let.set()


def test_the_name_is_gone_at_once_and_the_rest_later(tmp_path, slow_disk):
    leaving = Deletions()
    leaving.delete(made(tmp_path / "checkpoint-2"))
    assert os.listdir(tmp_path) == [HIDDEN] and not leaving.wait(0)
    slow_disk.set()
    assert leaving.wait() and os.listdir(tmp_path) == []
    leaving.delete(tmp_path / "checkpoint-2")  # somebody was faster
    leaving.delete(made(tmp_path / "checkpoint-4"))  # with a thread of its own: the first one's is over
    assert leaving.wait() and os.listdir(tmp_path) == []


def test_what_a_killed_process_leaves_is_swept(tmp_path, slow_disk, capfd):
    leaving = Deletions()
    leaving.delete(made(tmp_path / "checkpoint-2"))
    assert sweep(tmp_path) == [HIDDEN] and os.listdir(tmp_path) == []
    slow_disk.set()
    assert leaving.wait() and capfd.readouterr().err == ""


def test_at_once_where_nothing_goes_on_beside_the_training(tmp_path):
    before = threading.active_count()
    Deletions(in_background=False).delete(made(tmp_path / "checkpoint-2"))
    assert os.listdir(tmp_path) == [] and threading.active_count() == before


def test_what_stays_is_told_and_the_others_go(tmp_path, monkeypatch, capfd):
    discard = deletions.discard
    monkeypatch.setattr(deletions, "discard", lambda path: None if path.name == HIDDEN else discard(path))
    leaving = Deletions()
    for name in ("checkpoint-2", "checkpoint-4"):
        leaving.delete(made(tmp_path / name))
    assert leaving.wait() and os.listdir(tmp_path) == [HIDDEN]
    assert capfd.readouterr().err == f"{tmp_path / HIDDEN} could not be deleted; the next start tries again\n"


def test_a_save_waits_for_the_room_that_a_deletion_makes(tmp_path, slow_disk):
    leaving, there = Deletions(), []
    leaving.delete(made(tmp_path / "checkpoint-2"))
    writer = CheckpointWriter(deletions=leaving)
    staged = tmp_path / ".saving-checkpoint-4.h.1"
    writer.begin(Save(4, staged, tmp_path / "checkpoint-4", lambda folder: there.extend(os.listdir(tmp_path)), FACTS))
    assert writer.finished() is None and not staged.exists()
    slow_disk.set()
    assert writer.finished(wait=True).error is None and there == [staged.name]


# ---- in a training ----

LIMITED = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}


def test_training_goes_on_meanwhile(tmp_path, slow_disk):
    class Sees(TrainerCallback):
        seen = None

        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 4:
                self.seen = sorted(name for name in os.listdir(tmp_path) if "checkpoint-" in name)
                slow_disk.set()

    trainer, sees = make_trainer(tmp_path, **LIMITED), Sees()
    trainer.add_callback(sees)
    trainer.train()
    assert HIDDEN in sees.seen and "checkpoint-2" not in sees.seen and "checkpoint-4" in sees.seen
    assert [name for name in os.listdir(tmp_path) if "checkpoint-" in name] == ["checkpoint-6"]


def test_told_to_stop_it_leaves_the_rest_to_the_next_start(tmp_path, slow_disk, monkeypatch):
    monkeypatch.setattr(manager, "MOMENT", 0.01)

    class Tells(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), 15)

    with preemption.Signals() as signals:
        trainer = make_trainer(tmp_path, **LIMITED)
        trainer.signals = signals
        trainer.add_callback(Tells())
        with pytest.raises(preemption.Preempted, match="saved checkpoint-3"):
            trainer.train()
    assert sorted(name for name in os.listdir(tmp_path) if "checkpoint-" in name) == [HIDDEN, "checkpoint-3"]
    assert sweep(tmp_path) == [HIDDEN]


def test_the_final_model_waits_for_room(tmp_path, slow_disk):
    trainer, order = make_trainer(tmp_path, **LIMITED), []
    trainer.checkpointing.deletions.delete(made(tmp_path / "checkpoint-2"))
    trainer.write_model = lambda folder, weights, final: order.append(sorted(os.listdir(tmp_path)))
    timer = threading.Timer(0.05, slow_disk.set)
    timer.start()
    trainer.save_model()
    timer.join()
    assert len(order) == 1 and HIDDEN not in order[0]


# ---- processes that write one checkpoint together ----

FULL = OSError(28, "No space left on device")
PART = "optimizer-00002-of-00002.json"


class Heard:
    """All processes' news, as of the last time that each told them."""

    def __init__(self, rank, said):
        self.rank, self.said = rank, said

    def exchange(self, values):
        self.said[self.rank] = list(values)
        return [max(each) for each in zip(*self.said.values(), strict=True)]

    at_once = exchange

    def first_says(self, value):
        return value

    def close(self):
        pass


def of_two(folder, rank, said, write, **more):
    """One of two processes whose optimizer's state is divided; `write` is what it adds to a checkpoint."""
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
    made = Checkpointing(trainer, in_background=True, max_failed=3)
    made.agreement = Heard(rank, said)
    made._contents = lambda *given: write
    made._facts, made._logs = lambda: {"world_size": 2}, lambda: []
    return made


def part(folder):
    write_text(folder / PART, "{}")


def whole(folder):
    write_text(folder / "model.safetensors", "x")


def full(folder):
    raise FULL


def steps(*processes):
    """Ends of steps and beginnings of the next, until all have heard how the save has ended."""
    for _ in range(4000):
        for each in processes:
            each.look()
        for each in processes:
            each.heed()
        if all(each.saving_state is None for each in processes):
            return
        time.sleep(0.005)
    raise AssertionError("nobody hears of it")


def left(folder, *processes):
    for each in processes:
        each.deletions.wait()
    return os.listdir(folder)


@pytest.mark.parametrize("late", [False, True])
def test_a_part_of_a_checkpoint_that_the_first_process_cannot_write_is_deleted(tmp_path, late):
    """Whether it was written before all heard of the failure, or after."""
    may_write = threading.Event()

    def second_part(folder):
        assert may_write.wait(20)
        part(folder)

    said = {}
    zero, one = of_two(tmp_path, 0, said, full), of_two(tmp_path, 1, said, second_part)
    zero.save()
    one.save()
    if not late:
        may_write.set()
        one.writer.thread.join()
    steps(zero, one)
    may_write.set()
    one.finish()
    assert left(tmp_path, zero, one) == [] and (zero.failed, one.failed) == (1, 1)
    zero._contents = lambda *given: whole  # there is room again
    for each in (zero, one):
        each._tell = lambda state: None
        each.trainer.state.global_step = 4
        each.save()
    steps(zero, one)
    assert left(tmp_path, zero, one) == ["checkpoint-4"] and manifest.verify(tmp_path / "checkpoint-4") is None


def test_a_part_that_cannot_be_written(tmp_path):
    said = {}
    zero, one = of_two(tmp_path, 0, said, whole), of_two(tmp_path, 1, said, full)
    zero.save()
    one.save()
    steps(zero, one)
    zero.finish()
    assert left(tmp_path, zero, one) == []


def test_a_process_that_is_gone_leaves_nothing_either(tmp_path, monkeypatch):
    monkeypatch.setattr(async_writer, "LAST_PATIENCE", 0.01)
    zero = of_two(tmp_path, 0, {}, whole)
    zero.save()
    zero.close()
    assert left(tmp_path, zero) == []


def test_who_has_no_part_makes_no_folder(tmp_path):
    """With `save_only_model`, and with DeepSpeed, whose engine writes by itself."""
    one = of_two(tmp_path, 1, {}, part)
    one.trainer.args.save_only_model = True
    engine = SimpleNamespace(save_checkpoint=lambda folder: None)
    other = of_two(tmp_path, 1, {}, part, is_fsdp_enabled=False, is_deepspeed_enabled=True, model_wrapped=engine)
    for each in (one, other):
        each.save()
        assert not each.writer.is_busy and each.saving_state is not None
    assert os.listdir(tmp_path) == []
    one.saving_state = None
    one.save(goes_on=True)  # what a run goes on from holds all parts
    assert one.writer.finished(wait=True).error is None and len(list(tmp_path.glob(f"*/{PART}"))) == 1


def test_the_others_begin_when_there_is_room(tmp_path, slow_disk):
    """They do not know what the first process still deletes."""
    zero, named = of_two(tmp_path, 0, {}, whole), []
    zero.deletions.delete(made(tmp_path / "checkpoint-2"))
    zero.agreement.first_says = lambda value: named.append(os.listdir(tmp_path)) or value
    timer = threading.Timer(0.05, slow_disk.set)
    timer.start()
    zero.save()
    timer.join()
    zero.writer.save.given_up.set()
    zero.finish()
    assert named == [[]]
