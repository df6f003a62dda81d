"""Writing one checkpoint, by itself: what is waited for, what is left behind, what is said."""

import os
import threading

import pytest
from safetensors import SafetensorError

from storage import atomic, manifest
from trainer.checkpointing import async_writer
from trainer.checkpointing.async_writer import CheckpointWriter, Outcome, Save, failure_line


def save(folder, write=lambda staged: (staged / "mine").write_text("1"), **options):
    """The save of step 3 of two processes."""
    return Save(3, folder / ".saving-checkpoint-3.h.1", folder / "checkpoint-3", write, {"world_size": 2}, **options)


def fails(staged):
    raise OSError(28, "No space left on device")


def test_nobody_is_waited_for_for_ever(tmp_path, monkeypatch):
    """A process that has died beside this one writes no more and says nothing."""
    monkeypatch.setattr(async_writer, "PATIENCE", 0.01)
    writer, alone = CheckpointWriter(), save(tmp_path, awaited=["mine", "theirs"])
    writer.begin(alone)
    try:
        writer.thread.join(10)
        outcome = writer.finished()
        assert outcome is not None, "it still waits"
    finally:
        alone.given_up.set()
    assert isinstance(outcome.error, TimeoutError) and "did not write theirs" in str(outcome.error)
    assert not (tmp_path / "checkpoint-3").exists()


@pytest.mark.parametrize("part", [{"publishes": False}, {"awaited": ["theirs"]}])
def test_one_of_several_that_fails_leaves_the_folder(tmp_path, part):
    """It cannot know whether the others are in the middle of writing there; one that is alone can."""
    first = save(tmp_path)
    first.staged.mkdir()
    first.write(first.staged)
    with pytest.raises(OSError, match="No space"):
        async_writer.write(save(tmp_path, fails, **part))
    assert os.listdir(first.staged) == ["mine"]
    with pytest.raises(OSError, match="No space"):
        async_writer.write(save(tmp_path, fails))
    assert os.listdir(tmp_path) == []


def test_a_part_is_no_checkpoint(tmp_path):
    part = save(tmp_path, publishes=False)
    async_writer.write(part)
    assert os.listdir(tmp_path) == [part.staged.name] and os.listdir(part.staged) == ["mine"]


def test_the_logs_are_on_disk_before_the_checkpoint_that_stands_for_their_lines(tmp_path, monkeypatch):
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


def test_everybody_who_may_read_new_files_may_read_a_checkpoints(tmp_path):
    def private(staged):
        (staged / "model.safetensors").touch(mode=0o600)

    done = save(tmp_path, private)
    async_writer.write(done)
    found = {path.name: path.stat().st_mode & 0o777 for path in done.final.iterdir()}
    assert found == dict.fromkeys(("model.safetensors", manifest.NAME), 0o666 & ~atomic.MASK)


def test_one_outcome_for_each_save(tmp_path):
    may_write = threading.Event()

    def late(staged):
        assert may_write.wait(20)
        (staged / "mine").write_text("1")

    writer = CheckpointWriter()
    assert writer.finished() is None and not writer.is_busy
    writer.begin(save(tmp_path, late))
    assert writer.finished() is None and writer.is_busy
    with pytest.raises(AssertionError, match="a save is under way"):
        writer.begin(save(tmp_path))
    may_write.set()
    assert writer.finished(wait=True) == Outcome(3, tmp_path / "checkpoint-3", None)
    assert writer.finished(wait=True) is None and not writer.is_busy


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("error", "reason", "says_what_is_free"),
    [
        (OSError(28, "No space left on device"), "No space left on device", True),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded", True),
        (SafetensorError(FULL), FULL, True),  # it has neither number nor word of its own for it
        (SafetensorError("a header\nthat is none"), "a header that is none", False),
        (OSError(30, "Read-only file system"), "Read-only file system", False),
    ],
)
def test_a_failure_is_one_line(tmp_path, error, reason, says_what_is_free):
    outcome = Outcome(3, tmp_path / "checkpoint-3", error)
    line = failure_line(outcome, 2, 5, "checkpoint-1")
    assert line.startswith(f"ERROR: checkpoint-3 could not be saved: {reason}") and "\n" not in line
    assert (f" MB free in {tmp_path})" in line) == says_what_is_free
    assert "checkpoint-1 is kept; failed saves in a row: 2, the run ends at 5 (max_failed_saves)" in line
    assert "there is none yet" in failure_line(outcome, 2, 5, None)
