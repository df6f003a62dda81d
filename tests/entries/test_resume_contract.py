"""Whole runs that go on with other settings: refused with the reason, or equal to what a hand or another run says."""

import collections
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from several_processes import launched
from small_runs import SmallRuns, weights

import train
from loader.resume import find_checkpoint
from storage import manifest

pytestmark = pytest.mark.slow  # whole small runs, many of them

SAVES = "save_strategy: steps\nsave_steps: 4\nmax_steps: 8\nmodel: {hidden_dim: 8, hidden_layers: 1, dropout: 0.0}"

UNPADDED = SAVES + "\ndataset: {chunk_size: 1}"  # else a batch's mean is over actions, and halves weigh otherwise


@pytest.fixture
def run(in_root, tmp_path):
    return SmallRuns(tmp_path)


def stopped(run, text=SAVES, out="out", at=4, **flags):
    """A run as it was killed after the checkpoint of step `at`; returns what it would have come to."""
    whole = weights(run(text, out=out, **flags))
    for path in (run.folder / out).iterdir():
        if path.name.startswith("checkpoint-") and int(path.name[11:]) > at:
            shutil.rmtree(path)
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
            train.main([*run.words(text, **flags, resume_from_checkpoint="auto"), *more])
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


def test_everything_that_cannot_be_is_said_at_once(run, capsys):
    stopped(run)
    lines = refused(run, capsys, SAVES.replace("hidden_dim: 8", "hidden_dim: 9"), seed=3, max_steps=2)
    assert len(lines) == 3
    assert [line.split("`")[1].split(":")[0] for line in lines] == ["seed", "model.hidden_dim", "max_steps"]


@pytest.mark.keys("resume_changed")
def test_an_allowed_change_is_said_applied_and_recorded(run, capsys):
    stopped(run)
    text = f"{SAVES}\nmax_grad_norm: 0.001\nresume_changed: allow"
    capsys.readouterr()
    resumed(run, text)
    shown = capsys.readouterr().out
    assert shown.count("changed on resume: `max_grad_norm: 0.001`") == 1 and "was 1.0 (default)" in shown
    (entry,) = record(run)
    assert entry["step"] == 4 and entry["changed"]["max_grad_norm"]["after"] == 0.001
    resumed(run, f"{text}\nseed: 5", max_steps=12)
    first, second = record(run, step=12)  # carried on
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
    whole = load_file(run.folder / "out/checkpoint-8/model.safetensors")
    shutil.rmtree(run.folder / "out/checkpoint-8")
    again = resumed(run, learning_rate=0.5, weight_decay=0.25, save_steps=2)
    assert "resume_lr" not in capsys.readouterr().out  # nothing has changed since checkpoint-6
    assert all(torch.equal(value, whole[name]) for name, value in weights(again).items())
    assert [each["step"] for each in record(run)] == [4]


@pytest.mark.keys("resume_schedule")
def test_an_extended_run_keeps_or_rebases_its_course(run, capsys):
    linear = SAVES + "\nlr_scheduler_type: linear"
    stopped(run, linear, learning_rate=0.8)
    (line,) = refused(run, capsys, linear, by_check=False, learning_rate=0.8, max_steps=12)
    assert "`max_steps: 12` on the command line" in line and "--resume_schedule" in line and "step 8" in line
    (line,) = refused(run, capsys, linear, by_check=False, learning_rate=0.8, max_steps=12, resume_schedule="keep")
    assert "`max_steps: 12` on the command line" in line and "rate of 0 at step 8" in line
    (line,) = refused(run, capsys, linear, learning_rate=0.8, max_steps=3)
    assert "has gone further than 3 steps" in line
    trainer = resumed(run, linear, learning_rate=0.8, max_steps=12, resume_schedule="rebase")
    assert trainer.state.global_step == 12
    rates = run.log("learning_rate")
    course = [0.8 * (1 - step / 8) for step in range(4)] + [0.8 * (1 - (4 + 4 * step / 8) / 8) for step in range(8)]
    assert [rates[step + 1] for step in range(12)] == pytest.approx(course)  # the line of step n has update n's rate
    shutil.rmtree(run.folder / "out/checkpoint-12")
    again = resumed(run, linear, learning_rate=0.8, max_steps=12, resume_schedule="rebase")
    assert run.log("learning_rate")[12] == pytest.approx(course[11])
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in weights(again).items())


def test_a_finished_run_goes_on_when_it_is_given_more_steps(run, capsys):
    run(SAVES)
    resumed(run)
    assert "checkpoint-8 is the run's last step: nothing is left to train" in capsys.readouterr().out
    assert resumed(run, max_steps=10).state.global_step == 10
    assert sorted(run.log("loss")) == list(range(1, 11))


def test_a_run_in_epochs_goes_on_longer(run, capsys):
    base = run.folder / "base.yaml"
    base.write_text(base.read_text().replace("max_steps: 4\n", ""))
    text = SAVES.replace("max_steps: 8", "num_train_epochs: 2") + "\nlr_scheduler_type: linear"
    stopped(run, text)
    (line,) = refused(run, capsys, text.replace("epochs: 2", "epochs: 4"), by_check=False)
    assert "`num_train_epochs: 4.0` at" in line and "of 6 steps and is of 12" in line
    resumed(run, text.replace("epochs: 2", "epochs: 4"), resume_schedule="rebase")
    assert run.log("learning_rate")[12] == pytest.approx(0.01 * (1 - (4 + 2 * 7 / 8) / 6))


def test_epochs_of_more_batches_make_a_longer_run(run, capsys):
    base = run.folder / "base.yaml"
    base.write_text(base.read_text().replace("max_steps: 4\n", ""))
    text = SAVES.replace("max_steps: 8", "num_train_epochs: 3\nlimit_train_batches: 2") + "\nlr_scheduler_type: linear"
    stopped(run, text)
    more = text.replace("batches: 2", "batches: 3") + "\nresume_changed: allow"
    (line,) = refused(run, capsys, more, by_check=False)
    assert "`limit_train_batches: 3` at" in line and "step 6" in line and "--resume_schedule" in line
    fewer = f"{text}\ndataset: {{samples_per_epoch: 4}}\nresume_changed: allow"  # what that makes, only the start knows
    with pytest.raises(SystemExit) as left:
        train.main([*run.words(fewer, resume_from_checkpoint="auto"), "--check"])
    assert left.value.code == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        resumed(run, fewer)
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert left.value.code == 2 and "`dataset.samples_per_epoch: 4` at" in line and "has gone further than 3" in line
    trainer = resumed(run, more, resume_schedule="rebase")
    assert "length: `limit_train_batches: 3` at" in (said := capsys.readouterr().out) and "9 steps of 6 steps" in said
    assert trainer.state.global_step == 9
    assert run.log("learning_rate")[9] == pytest.approx(0.01 * (1 - (4 + 2 * 4 / 5) / 6))


@pytest.mark.keys("global_batch_size")
def test_one_batch_or_several_small_ones(run):
    """Stopped in the middle of the second epoch and gone on in halves: what it would have come to."""
    whole = stopped(run, UNPADDED, global_batch_size=4)
    halves = resumed(run, UNPADDED, global_batch_size=4, per_device_train_batch_size=2)
    assert halves.args.gradient_accumulation_steps == 2
    assert all(torch.allclose(value, whole[name], atol=1e-6) for name, value in weights(halves).items())


def test_another_product_is_refused_or_goes_on_by_samples(run, capsys):
    stopped(run)
    (line,) = refused(run, capsys, per_device_train_batch_size=6)
    assert "a step was of 4 samples and would be of 6" in line and "set global_batch_size 4" in line
    trainer = resumed(run, per_device_train_batch_size=6, resume_changed="allow")
    # 4 steps of 4 of 12 samples: an epoch and a third. In sixes that is an epoch; 4 steps more are 2 more epochs.
    assert trainer.state.epoch == pytest.approx(3.0)
    assert "batch" in record(run)[0]["changed"]


def test_two_processes_become_one_and_one_becomes_two(run):
    """The same global batch: the run goes on with the same samples, whoever takes them."""
    text = f"{UNPADDED}\nglobal_batch_size: 4"
    whole = stopped(run, text)
    done = launched("ddp.yaml", [*run.words(text), "--resume_from_checkpoint", "auto"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "batch 2 per device × 2 processes = 4, checkpoint-4's was 4 per device: the same 4 samples" in done.stdout
    two = load_file(run.folder / "out/model.safetensors")
    assert all(torch.allclose(two[name], whole[name], atol=1e-6) for name in whole)

    # checkpoint-8 was written by the two: one goes on from it for as long again.
    longer = run(text, out="longer", max_steps=12)
    one = resumed(run, text, max_steps=12)
    assert "1 per device" not in record(run, step=12)[-1]["changed"]["batch"]["after"]
    assert all(torch.allclose(value, weights(longer)[name], atol=1e-6) for name, value in weights(one).items())
