"""Whole runs that resume with other settings: refused with the reason, or equal to a computation or another run."""

import collections
import json
import shutil

import pytest
import torch
from run_results import error_line, same, tensors
from several_processes import launched
from small_runs import weights

import train
from loader.command_line.entry import command_line
from loader.resume import find_checkpoint
from storage import manifest

pytestmark = pytest.mark.slow  # whole small runs, many of them

SAVES = "save_strategy: steps\nsave_steps: 4\nmax_steps: 8\nmodel: {hidden_dim: 8, hidden_layers: 1, dropout: 0.0}"

EPOCHS = f"{SAVES}\nmax_steps: -1\nlr_scheduler_type: linear\n"
UNPADDED = SAVES + "\ndataset: {chunk_size: 1}"  # else the mean is over actions, and halves of a batch weigh unequally


def stopped(run, text=SAVES, out="out", at=4, **flags):
    """Leave a run as if it had been killed after the checkpoint of step `at`; return its final weights."""
    whole = weights(run(text, out=out, **flags))
    for step in run.checkpoints():
        if step > at:
            shutil.rmtree(run.folder / out / f"checkpoint-{step}")
    return whole


def refused(run, capsys, text=SAVES, by_check=True, **flags):
    """The error lines of a start, which has written nothing.

    Args:
        by_check: `--check` gives the same lines; else it gives none.
    """
    before, lines = folders(run), []
    for more in (["--check"], []):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            command_line(train.main, [*run.words(text, **flags, resume_from_checkpoint="auto"), *more])
        lines.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")])
        assert left.value.code == (2 if lines[-1] else 0)
    assert lines[0] == (lines[1] if by_check else []) and lines[1] and folders(run) == before
    return lines[1]


def folders(run):
    """Every file in the run's folder, with its time."""
    return {path: path.stat().st_mtime_ns for path in (run.folder / "out").rglob("*") if path.is_file()}


def resumed(run, text=SAVES, **flags):
    return run(text, **flags, resume_from_checkpoint="auto")


def record(run, out="out", step=8):
    return json.loads((run.folder / out / f"checkpoint-{step}" / "resumed.json").read_text())


def test_a_resume_reads_and_verifies_its_checkpoint_once(run, monkeypatch):
    stopped(run)
    resolved, hashed, entry, read_saved = [], collections.Counter(), manifest.entry, find_checkpoint.read_saved
    monkeypatch.setattr(manifest, "entry", lambda path: hashed.update([path]) or entry(path))
    monkeypatch.setattr(find_checkpoint, "read_saved", lambda *args: resolved.append(args) or read_saved(*args))
    folder = run.folder / "out/checkpoint-4"
    files = {path for path in folder.rglob("*") if path.is_file() and path.name != manifest.NAME}
    resumed(run)
    assert len(resolved) == 1 and {path: hashed[path] for path in files} == dict.fromkeys(files, 1)


def test_all_errors_are_reported_together(run, capsys):
    stopped(run)
    lines = refused(run, capsys, SAVES.replace("hidden_dim: 8", "hidden_dim: 9"), seed=3, max_steps=2)
    assert len(lines) == 3
    assert [line.split("`")[1].split(":")[0] for line in lines] == ["seed", "model.hidden_dim", "max_steps"]


@pytest.mark.keys("resume_changed")
def test_an_allowed_change_is_printed_applied_and_recorded(run, capsys):
    stopped(run)
    text = f"{SAVES}\nmax_grad_norm: 0.001\nresume_changed: allow"
    capsys.readouterr()
    resumed(run, text)
    shown = capsys.readouterr().out
    assert shown.count("changed on resume: `max_grad_norm: 0.001`") == 1 and "was 1.0 (default)" in shown
    (entry,) = record(run)
    assert entry["step"] == 4 and entry["changed"]["max_grad_norm"]["after"] == 0.001
    resumed(run, f"{text}\nseed: 5", max_steps=12)
    first, second = record(run, step=12)
    assert first == entry and second["step"] == 8 and set(second["changed"]) == {"seed", "max_steps"}


def test_a_learning_rate_on_the_command_line_is_resume_lr_and_only_once(run, capsys):
    stopped(run, learning_rate=0.01)
    capsys.readouterr()
    resumed(run, learning_rate=0.5, weight_decay=0.25, save_steps=2)
    shown = capsys.readouterr().out
    assert shown.count("resume_lr 0.5: ") == 1 and shown.count("resume_weight_decay 0.25: ") == 1
    assert set(run.log("learning_rate").values()) == {0.01, 0.5} and run.log("learning_rate")[5] == 0.5
    assert {step: value for step, value in run.log("weight_decay").items() if step > 4} == dict.fromkeys(
        range(5, 9), 0.25
    )
    whole = tensors(run.folder / "out/checkpoint-8")
    shutil.rmtree(run.folder / "out/checkpoint-8")
    again = resumed(run, learning_rate=0.5, weight_decay=0.25, save_steps=2)
    assert "resume_lr" not in capsys.readouterr().out  # nothing has changed since checkpoint-6
    assert same(again, whole) and [entry["step"] for entry in record(run)] == [4]


@pytest.mark.keys("resume_schedule")
def test_a_longer_run_keeps_or_rebases_its_schedule(run, capsys):
    linear = SAVES + "\nlr_scheduler_type: linear"
    stopped(run, linear, learning_rate=0.8)
    (line,) = refused(run, capsys, linear, by_check=False, learning_rate=0.8, max_steps=12)
    assert "`max_steps: 12` on the command line" in line and "--resume_schedule" in line and "step 8" in line
    (line,) = refused(run, capsys, linear, by_check=False, learning_rate=0.8, max_steps=12, resume_schedule="keep")
    assert "`max_steps: 12` on the command line" in line and "rate of 0 at step 8" in line
    (line,) = refused(run, capsys, linear, learning_rate=0.8, max_steps=3)
    assert "is past 3 steps" in line
    trainer = resumed(run, linear, learning_rate=0.8, max_steps=12, resume_schedule="rebase")
    assert trainer.state.global_step == 12
    rates = run.log("learning_rate")
    expected = [0.8 * (1 - step / 8) for step in range(4)] + [0.8 * (1 - (4 + 4 * step / 8) / 8) for step in range(8)]
    assert [rates[step + 1] for step in range(12)] == pytest.approx(expected)
    shutil.rmtree(run.folder / "out/checkpoint-12")
    again = resumed(run, linear, learning_rate=0.8, max_steps=12, resume_schedule="rebase")
    assert run.log("learning_rate")[12] == pytest.approx(expected[11]) and same(again, trainer)


def test_a_finished_run_continues_with_more_steps(run, capsys):
    run(SAVES)
    resumed(run)
    assert "checkpoint-8 is the run's last step: nothing is left to train" in capsys.readouterr().out
    assert resumed(run, max_steps=10).state.global_step == 10
    assert sorted(run.log("loss")) == list(range(1, 11))


def test_more_epochs_make_a_longer_run(run, capsys):
    stopped(run, f"{EPOCHS}num_train_epochs: 2")
    (line,) = refused(run, capsys, f"{EPOCHS}num_train_epochs: 4", by_check=False)
    assert "`num_train_epochs: 4.0` at" in line and "of 6 steps and is of 12" in line
    resumed(run, f"{EPOCHS}num_train_epochs: 4", resume_schedule="rebase")
    assert run.log("learning_rate")[12] == pytest.approx(0.01 * (1 - (4 + 2 * 7 / 8) / 6))


def test_epochs_of_more_batches_make_a_longer_run(run, capsys):
    text = f"{EPOCHS}num_train_epochs: 3\nlimit_train_batches: 2"
    stopped(run, text)
    more = f"{text}\nlimit_train_batches: 3\nresume_changed: allow"
    (line,) = refused(run, capsys, more, by_check=False)
    assert "`limit_train_batches: 3` at" in line and "step 6" in line and "--resume_schedule" in line
    fewer = f"{text}\ndataset: {{samples_per_epoch: 4}}\nresume_changed: allow"  # only the start knows that length
    with pytest.raises(SystemExit) as check:
        train.main([*run.words(fewer, resume_from_checkpoint="auto"), "--check"])
    assert check.value.code == 0
    assert "`dataset.samples_per_epoch: 4` at" in error_line(capsys, resumed, run, fewer)
    trainer = resumed(run, more, resume_schedule="rebase")
    assert "`limit_train_batches: 3` at" in capsys.readouterr().out
    assert trainer.state.global_step == 9
    assert run.log("learning_rate")[9] == pytest.approx(0.01 * (1 - (4 + 2 * 4 / 5) / 6))


@pytest.mark.keys("global_batch_size")
def test_one_batch_or_several_small_ones(run):
    """Stopped in the middle of the second epoch and resumed with half the batch and twice the accumulation."""
    whole = stopped(run, UNPADDED, global_batch_size=4)
    halves = resumed(run, UNPADDED, global_batch_size=4, per_device_train_batch_size=2)
    assert halves.args.gradient_accumulation_steps == 2
    assert all(torch.allclose(value, whole[name], atol=1e-6) for name, value in weights(halves).items())


def test_another_global_batch_is_refused_or_continues_by_samples(run, capsys):
    stopped(run)
    (line,) = refused(run, capsys, per_device_train_batch_size=6)
    assert "per_device_train_batch_size: 6" in line and "global_batch_size 4" in line
    trainer = resumed(run, per_device_train_batch_size=6, resume_changed="allow")
    # 4 steps of 4 of 12 samples: an epoch and a third. In sixes that is an epoch; 4 steps more are 2 more epochs.
    assert trainer.state.epoch == pytest.approx(3.0)
    assert "batch" in record(run)[0]["changed"]


def test_two_processes_become_one_and_one_becomes_two(run):
    """With the same global batch, a run continues with the same samples on any number of processes."""
    text = f"{UNPADDED}\nglobal_batch_size: 4"
    whole = stopped(run, text)
    done = launched("ddp.yaml", [*run.words(text), "--resume_from_checkpoint", "auto"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 per device × 2 processes" in done.stdout
    two = tensors(run.folder / "out")
    assert all(torch.allclose(two[name], whole[name], atol=1e-6) for name in whole)

    # checkpoint-8 was written by two processes; one process continues.
    longer = run(text, out="longer", max_steps=12)
    one = resumed(run, text, max_steps=12)
    assert "1 per device" not in record(run, step=12)[-1]["changed"]["batch"]["after"]
    assert all(torch.allclose(value, weights(longer)[name], atol=1e-6) for name, value in weights(one).items())
