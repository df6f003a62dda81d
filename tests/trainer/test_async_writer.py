"""Writing and deleting checkpoints: what is waited for, and what failures leave behind."""

import os
import threading

import pytest
from safetensors import SafetensorError

from storage import atomic, manifest
from storage.atomic import write_text
from storage.checkpoints import sweep
from trainer.checkpointing import async_writer
from trainer.checkpointing.async_writer import BackgroundDeletions, CheckpointWriter, Save, SaveResult, failure_line

HIDDEN = ".deleting-checkpoint-2"


def made(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_text("x")
    return folder


def save(folder, write=lambda staged: (staged / "mine").write_text("1"), **options):
    """The save of step 3 of two processes."""
    return Save(3, folder / ".saving-checkpoint-3.h.1", folder / "checkpoint-3", write, {"world_size": 2}, **options)


def fails(staged):
    raise OSError(28, "No space left on device")


def test_the_wait_for_other_ranks_ends(tmp_path, monkeypatch):
    """Another rank has died without a message."""
    monkeypatch.setattr(async_writer, "PATIENCE", 0.01)
    writer, alone = CheckpointWriter(), save(tmp_path, awaited=["mine", "theirs"])
    writer.begin(alone)
    try:
        writer.thread.join(10)
        result = writer.poll()
        assert result is not None, "the writer still waits"
    finally:
        alone.abandoned.set()
    assert isinstance(result.error, TimeoutError)
    assert not (tmp_path / "checkpoint-3").exists()


@pytest.mark.parametrize("part", [{"publishes": False}, {"awaited": ["theirs"]}])
def test_a_failed_part_does_not_delete_the_staging_folder(tmp_path, part):
    """Other ranks may still be writing into it. A rank that writes alone deletes it."""
    first = save(tmp_path)
    first.staged.mkdir()
    first.write(first.staged)
    with pytest.raises(OSError):
        async_writer.write(save(tmp_path, fails, **part))
    assert os.listdir(first.staged) == ["mine"]
    with pytest.raises(OSError):
        async_writer.write(save(tmp_path, fails))
    assert os.listdir(tmp_path) == []


def test_a_part_is_not_published(tmp_path):
    part = save(tmp_path, publishes=False)
    async_writer.write(part)
    assert os.listdir(tmp_path) == [part.staged.name] and os.listdir(part.staged) == ["mine"]


def test_logs_are_synced_before_the_checkpoint_is_published(tmp_path, monkeypatch):
    done, publish = [], async_writer.publish
    monkeypatch.setattr(async_writer, "sync", lambda path: done.append(path.name))
    monkeypatch.setattr(
        async_writer, "publish", lambda staged, final: (done.append("published"), publish(staged, final))
    )
    logs = [tmp_path / name for name in ("metrics.jsonl", "not_begun.csv", "samples.jsonl")]
    logs[0].touch()
    logs[2].touch()
    async_writer.write(save(tmp_path, logs=logs))
    assert done == ["metrics.jsonl", "samples.jsonl", "published"]


def test_files_get_the_permissions_of_the_umask(tmp_path):
    def private(staged):
        (staged / "model.safetensors").touch(mode=0o600)

    done = save(tmp_path, private)
    async_writer.write(done)
    found = {path.name: path.stat().st_mode & 0o777 for path in done.final.iterdir()}
    assert found == dict.fromkeys(("model.safetensors", manifest.NAME), 0o666 & ~atomic.MASK)


def test_each_save_has_one_result(tmp_path):
    may_write = threading.Event()

    def late(staged):
        assert may_write.wait(20)
        (staged / "mine").write_text("1")

    writer = CheckpointWriter()
    assert writer.poll() is None and not writer.is_busy
    writer.begin(save(tmp_path, late))
    assert writer.poll() is None and writer.is_busy
    with pytest.raises(AssertionError, match="a save"):
        writer.begin(save(tmp_path))
    may_write.set()
    assert writer.poll(wait=True) == SaveResult(tmp_path / "checkpoint-3", None)
    assert writer.poll(wait=True) is None and not writer.is_busy


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("error", "reason", "shows_free_space"),
    [
        (OSError(28, "No space left on device"), "No space left on device", True),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded", True),
        (SafetensorError(FULL), FULL, True),  # it has no errno
        (SafetensorError("a header\nthat is none"), "a header that is none", False),
        (OSError(30, "Read-only file system"), "Read-only file system", False),
    ],
)
def test_a_failure_is_one_line(tmp_path, error, reason, shows_free_space):
    result = SaveResult(tmp_path / "checkpoint-3", error)
    line = failure_line(result, 2, 5, "checkpoint-1")
    assert line.startswith(f"ERROR: checkpoint-3 could not be saved: {reason}") and "\n" not in line
    assert (f" MB free in {tmp_path})" in line) == shows_free_space
    assert "checkpoint-1" in line and "in a row: 2" in line and "max_failed_saves" in line
    assert "none" in failure_line(result, 2, 5, None)


def test_rank_0_waits_for_the_parts_of_other_ranks(tmp_path):
    """It stops waiting when another rank has failed."""

    def new_save(**options):
        return Save(
            3, tmp_path / ".saving-checkpoint-3.h.1", tmp_path / "checkpoint-3", write, {"world_size": 2}, **options
        )

    def write(folder):
        (folder / "mine").write_text("1")

    writer, first = CheckpointWriter(), new_save(awaited=["theirs"])
    writer.begin(first)
    assert writer.poll() is None and writer.is_busy
    async_writer.write(Save(3, first.staged, first.final, lambda f: write_text(f / "theirs", "2"), {}, (), False))
    assert writer.poll(wait=True).error is None and manifest.verify(tmp_path / "checkpoint-3") is None
    second = new_save(awaited=["theirs"])
    writer.begin(second)
    second.abandoned.set()
    assert isinstance(writer.poll(wait=True).error, TimeoutError)
    assert manifest.verify(tmp_path / "checkpoint-3") is None  # unchanged


# ---- deletions ----


def test_a_deleted_folder_is_renamed_at_once(tmp_path, slow_disk):
    deletions = BackgroundDeletions()
    deletions.delete(made(tmp_path / "checkpoint-2"))
    assert os.listdir(tmp_path) == [HIDDEN] and not deletions.wait(0)
    slow_disk.set()
    assert deletions.wait() and os.listdir(tmp_path) == []
    deletions.delete(tmp_path / "checkpoint-2")  # it does not exist any more
    deletions.delete(made(tmp_path / "checkpoint-4"))  # the first thread has ended
    assert deletions.wait() and os.listdir(tmp_path) == []


def test_sweep_deletes_what_a_killed_process_left(tmp_path, slow_disk, capfd):
    deletions = BackgroundDeletions()
    deletions.delete(made(tmp_path / "checkpoint-2"))
    assert sweep(tmp_path) == [HIDDEN] and os.listdir(tmp_path) == []
    slow_disk.set()
    assert deletions.wait() and capfd.readouterr().err == ""


def test_deletion_without_a_thread(tmp_path):
    before = threading.active_count()
    BackgroundDeletions(in_background=False).delete(made(tmp_path / "checkpoint-2"))
    assert os.listdir(tmp_path) == [] and threading.active_count() == before


def test_a_folder_that_cannot_be_deleted(tmp_path, monkeypatch, capfd):
    discard = async_writer.discard
    monkeypatch.setattr(async_writer, "discard", lambda path: None if path.name == HIDDEN else discard(path))
    deletions = BackgroundDeletions()
    for name in ("checkpoint-2", "checkpoint-4"):
        deletions.delete(made(tmp_path / name))
    assert deletions.wait() and os.listdir(tmp_path) == [HIDDEN]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and str(tmp_path / HIDDEN) in lines[0]


def test_a_save_waits_for_deletions(tmp_path, slow_disk):
    deletions, there = BackgroundDeletions(), []
    deletions.delete(made(tmp_path / "checkpoint-2"))
    writer = CheckpointWriter(deletions=deletions)
    staged = tmp_path / ".saving-checkpoint-4.h.1"
    writer.begin(
        Save(4, staged, tmp_path / "checkpoint-4", lambda folder: there.extend(os.listdir(tmp_path)), {"world_size": 1})
    )
    assert writer.poll() is None and not staged.exists()
    slow_disk.set()
    assert writer.poll(wait=True).error is None and there == [staged.name]
