"""Two runs of one folder at the same moment, a disk that does not answer, a folder that was taken over."""

import errno
import os

import pytest
from small_runs import SmallRuns

import train
from storage import manifest

TEXT = "save_strategy: steps\nsave_steps: 2\nmax_steps: 4"


@pytest.fixture
def run(in_root, tmp_path):
    return SmallRuns(tmp_path)


def refused(run, capsys, text=TEXT, code=2, **flags):
    """The one line that a run ends with."""
    with pytest.raises(SystemExit) as left:
        run(text, resume_from_checkpoint="auto", **flags)
    assert left.value.code == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_folder_is_held_before_a_checkpoint_of_it_is_chosen(run, monkeypatch):
    """Else another run might save there in between, and this one would call that damaged."""
    run(TEXT.replace("max_steps: 4", "max_steps: 2"))
    choose, held = train.chosen_checkpoint, []

    def chosen(*arguments):
        held.extend((run.folder / "out").glob(".run.lock"))
        return choose(*arguments)

    monkeypatch.setattr(train, "chosen_checkpoint", chosen)
    assert run(TEXT, resume_from_checkpoint="auto").state.global_step == 4
    assert len(held) == 1 and not held[0].exists()


def test_another_run_saves_where_no_folder_was(run, capsys, monkeypatch):
    choose, elsewhere = train.chosen_checkpoint, run.folder / "elsewhere"

    def chosen(*arguments):
        found = choose(*arguments)
        (elsewhere / "checkpoint-2").mkdir(parents=True)
        return found

    monkeypatch.setattr(train, "chosen_checkpoint", chosen)
    text = f"{TEXT}\ncheckpointing: {{dirpath: {elsewhere}, every_n_epochs: 0}}"
    assert f"another run has saved in {elsewhere}" in refused(run, capsys, text)
    assert [path.name for path in elsewhere.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_disk_that_does_not_answer_is_no_damage(run, capsys, monkeypatch, number):
    """The run's progress is not thrown away for it: it begins again when the disk does answer."""
    run(TEXT)
    entry = manifest.entry
    longer = TEXT.replace("max_steps: 4", "max_steps: 6")

    def unreadable(path):
        if "checkpoint-" in str(path):
            raise OSError(number, os.strerror(number))
        return entry(path)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "entry", unreadable)
        line = refused(run, capsys, longer)
    assert "checkpoint-4" in line and os.strerror(number) in line and "start again when it can be read" in line
    names = {path.name for path in (run.folder / "out").iterdir()}
    assert {"checkpoint-2", "checkpoint-4"} <= names and not any(name.startswith("damaged") for name in names)
    assert run(longer, resume_from_checkpoint="auto").state.global_step == 6


def test_a_folder_that_is_lost_at_the_very_end(run, capsys, monkeypatch):
    save = train.save_final_model

    def lost(trainer):
        trainer.locks[0].lost = True
        save(trainer)

    monkeypatch.setattr(train, "save_final_model", lost)
    assert "another run has taken over" in refused(run, capsys, code=1)


def test_a_finished_run_named_by_another(run, capsys):
    """Its model is taken; what the other folder lists and links is its own."""
    text = f"{TEXT}\ncheckpointing: {{save_last: true, every_n_epochs: 0}}"
    run(text, out="first")
    run(text, out="second", resume_from_checkpoint=run.folder / "first/checkpoint-4")
    assert "nothing is left to train" in capsys.readouterr().out
    assert manifest.read(run.folder / "second")["step"] == 4
    names = {path.name for path in (run.folder / "second").iterdir()}
    assert "last-checkpoint" not in names and "checkpoints.json" not in names
