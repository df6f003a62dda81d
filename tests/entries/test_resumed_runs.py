"""Resumed runs: state between two log lines, the choice of the checkpoint, and folders that two runs use."""

import errno
import json
import os
import shutil

import pytest
from run_results import error_line, same
from small_runs import stop_workers

import train
from storage import manifest
from trainer.run_differences import differences

pytestmark = pytest.mark.slow  # whole small runs, many of them

BEST = "load_best_model_at_end: true\nsave_strategy: steps\neval_steps: 2\nsave_steps: 2"


@pytest.mark.parametrize(
    "text",
    [
        "gradient_accumulation_steps: 2\nmodel: {dropout: 0.1}",
        "scheduler: {name: ReduceLROnPlateau, monitor: loss, factor: 0.1, patience: 0, threshold: 0.0}",
        "early_stopping: {monitor: loss, patience: 1, min_delta: 0.04, check_on_train_epoch_end: true}",
        "dataloader_num_workers: 1\ndataloader_persistent_workers: true\nmodel: {dropout: 0.1}",
    ],
)
def test_a_checkpoint_between_two_log_lines(run, text):
    """The resumed run's lines, rates, decisions and weights are those of the uninterrupted run."""
    text += "\nsave_strategy: steps\nsave_steps: 4\nlogging_steps: 5\nmax_steps: 11"
    trainers = [run(text, out="whole")]
    shutil.copytree(run.folder / "whole/checkpoint-4", run.folder / "again/checkpoint-4")
    shutil.copy(run.folder / "whole/metrics.jsonl", run.folder / "again")
    trainers.append(run(text, out="again", resume_from_checkpoint="auto"))
    assert same(*trainers) and differences(run.folder / "whole", run.folder / "again") == []
    for trainer in trainers:
        stop_workers(trainer.callback_handler.train_dataloader, trainer.callback_handler.eval_dataloader)


def test_a_finished_run_keeps_its_best_model(run):
    text = "load_best_model_at_end: true\nsave_strategy: steps\nsave_steps: 2\neval_steps: 2\n"
    text += "metric_for_best_model: eval_loss\ngreater_is_better: true"  # the worst, so that it is not the last
    run(text, max_steps=8)
    shutil.copytree(run.folder / "out", run.folder / "before", symlinks=True)
    best = json.loads((run.folder / "out/checkpoint-8/trainer_state.json").read_text())["best_model_checkpoint"]
    assert not best.endswith("checkpoint-8")  # else this test would not see a difference
    run(text, max_steps=8, resume_from_checkpoint="auto")
    assert same(run.folder / "before", run.folder / "out")


def test_resuming_from_an_earlier_checkpoint_renames_the_later_ones(run, capsys):
    text = "save_strategy: steps\nsave_steps: 2"
    run(text, max_steps=6)
    (run.folder / "out/superseded-checkpoint-4").mkdir()  # of an earlier resume
    checkpoint = str(run.folder / "out/checkpoint-2")
    run(f"{text}\nresume_lr: 0.5", max_steps=6, resume_from_checkpoint=checkpoint)
    assert f"resuming from {checkpoint}" in capsys.readouterr().out
    names = {path.name for path in (run.folder / "out").glob("superseded-*")}
    assert names == {"superseded-checkpoint-4", "superseded-2-checkpoint-4", "superseded-checkpoint-6"}
    assert run.checkpoints() == [2, 4, 6] and run.log("learning_rate")[6] == 0.5


def test_a_job_that_is_restarted_before_its_first_checkpoint(run):
    """`auto:FOLDER`: resume from the named checkpoint until the run has its own."""
    text = "save_strategy: steps\nsave_steps: 4\nmax_steps: 8"
    whole = run(text, out="whole")
    named = run.folder / "whole/checkpoint-4"
    stops = text.replace("save_steps: 4", "save_steps: 50") + "\ncallbacks: [{name: small_runs.StopsAfter, step: 6}]"
    run(stops, out="job", resume_from_checkpoint=named)
    assert run.checkpoints("job") == [] and sorted(run.log("loss", "job")) == [5, 6]
    (run.folder / "job/model.safetensors").unlink()  # the job was killed
    again = run(text, out="job", resume_from_checkpoint=f"auto:{named}")
    assert same(again, whole)
    assert sorted(run.log("loss", "job")) == [5, 6, 7, 8] and run.checkpoints("job") == [8]
    longer = run(text.replace("max_steps: 8", "max_steps: 10"), out="job", resume_from_checkpoint=f"auto:{named}")
    assert longer.state.global_step == 10 and sorted(run.log("loss", "job")) == [5, 6, 7, 8, 9, 10]


def test_the_printed_rates_are_those_of_the_resumed_run(run, capsys):
    run("save_strategy: steps\nsave_steps: 2", max_steps=4)
    shutil.rmtree(run.folder / "out/checkpoint-4")
    capsys.readouterr()
    run("save_strategy: steps\nsave_steps: 2\nresume_lr: 0.25", max_steps=4, resume_from_checkpoint="auto")
    shown = capsys.readouterr().out
    assert "0.25 at 0" in shown and json.loads((run.folder / "out/adaptation.json").read_text())
    assert "0.01" not in [word for line in shown.splitlines() if line.startswith("total") for word in line.split()]


def test_samples_per_second_counts_real_samples(run):
    """The batch size is larger than the data set."""
    run(per_device_train_batch_size=500, max_steps=2, logging_steps=2)
    record = run.log("samples_per_second")[2] * run.log("step_ms")[2] / 1000
    assert record == pytest.approx(12, rel=0.01)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("num_train_epochs: 2\nmax_steps: -1\nwarmup_steps: 7", " 7 steps"),
        ("max_steps: 9\nlr_decay_iters: 3\nlr_scheduler_type: cosine\nwarmup_epochs: 2", " 3 steps"),
        ("min_lr: 0.001\nlr_scheduler_type: linear\nresume_lr: 0.0001", "`resume_lr: 0.0001`"),
        ("checkpointing: {dirpath: /etc/passwd}", "`checkpointing.dirpath: /etc/passwd`"),
        ("logging: {logger_type: CSVLogger, save_dir: /etc/passwd}", "`logging.save_dir: /etc/passwd`"),
        ("optimizer: {name: SGD, momentum: -1}", "SGD"),
        ("gradient_checkpointing: true", "mlp"),
        ("log_level: bogus", "log_level"),
        (f"metric_for_best_model: nonsense\n{BEST}", "`metric_for_best_model: nonsense`"),
    ],
)
def test_errors_at_the_start_are_one_line(run, capsys, text, key):
    assert key in error_line(capsys, run, text)


@pytest.mark.parametrize(
    "text",
    [
        "max_steps: 60\nwarmup_ratio: 0.1\nlr_decay_iters: 50\nlr_scheduler_type: cosine",
        "max_steps: 30\nlr_decay_iters: 20\nmin_lr: 1.0e-4\nlr_scheduler_type: cosine\nwarmup_epochs: 1.5",
    ],
)
def test_check_and_start_accept_the_same_schedules(run, text):
    with pytest.raises(SystemExit) as error:
        train.main([*run.words(text), "--check"])
    assert error.value.code == 0
    run(text + "\ncallbacks: [{name: small_runs.StopsAfter, step: 1}]")


# ---- a folder that two runs use, and disks that fail ----

HELD = "save_strategy: steps\nsave_steps: 2\nmax_steps: 4"


def refused(run, capsys, text=HELD, code=2):
    return error_line(capsys, run, text, resume_from_checkpoint="auto", code=code)


def test_a_folder_is_locked_before_its_checkpoint_is_chosen(run, monkeypatch):
    """Another run could save there in between."""
    run(HELD.replace("max_steps: 4", "max_steps: 2"))
    original, held = train.find_on_rank0, []

    def choose(*arguments):
        held.extend((run.folder / "out").glob(".run.lock"))
        return original(*arguments)

    monkeypatch.setattr(train, "find_on_rank0", choose)
    assert run(HELD, resume_from_checkpoint="auto").state.global_step == 4
    assert len(held) == 1 and not held[0].exists()


def test_another_run_saves_into_a_folder_that_did_not_exist(run, capsys, monkeypatch):
    original, elsewhere = train.find_on_rank0, run.folder / "elsewhere"

    def choose(*arguments):
        (elsewhere / "checkpoint-2").mkdir(parents=True)
        return original(*arguments)

    monkeypatch.setattr(train, "find_on_rank0", choose)
    text = f"{HELD}\ncheckpointing: {{dirpath: {elsewhere}, every_n_epochs: 0}}"
    assert str(elsewhere) in refused(run, capsys, text)
    assert [path.name for path in elsewhere.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
def test_an_unreadable_checkpoint_is_not_damaged(run, capsys, monkeypatch, number):
    """The run refuses to start instead of passing over the checkpoint."""
    run(HELD)
    entry = manifest.entry
    longer = HELD.replace("max_steps: 4", "max_steps: 6")

    def unreadable(path):
        if "checkpoint-" in str(path):
            raise OSError(number, os.strerror(number))
        return entry(path)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "entry", unreadable)
        line = refused(run, capsys, longer)
    assert "checkpoint-4" in line and os.strerror(number) in line
    names = {path.name for path in (run.folder / "out").iterdir()}
    assert {"checkpoint-2", "checkpoint-4"} <= names and not any(name.startswith("damaged") for name in names)
    assert run(longer, resume_from_checkpoint="auto").state.global_step == 6


def test_a_lock_that_is_lost_before_the_final_model(run, capsys, monkeypatch):
    save = train.save_final_model

    def lost(trainer):
        trainer.locks[0].lost = True
        save(trainer)

    monkeypatch.setattr(train, "save_final_model", lost)
    refused(run, capsys, code=1)
    assert not (run.folder / "out/model.safetensors").exists()


def test_a_run_that_resumes_from_another_finished_run(run, capsys):
    """It takes the model; listing and symlinks stay in the first folder."""
    text = f"{HELD}\ncheckpointing: {{save_last: true, every_n_epochs: 0}}"
    run(text, out="first")
    run(text, out="second", resume_from_checkpoint=run.folder / "first/checkpoint-4")
    assert "nothing is left to train" in capsys.readouterr().out
    assert manifest.read(run.folder / "second")["step"] == 4
    names = {path.name for path in (run.folder / "second").iterdir()}
    assert "last-checkpoint" not in names and "checkpoints.json" not in names


def test_a_checkpoint_of_another_format_is_refused(run, capsys):
    """Also by `auto`, which would start a new run in place of the old one."""
    run(HELD)
    path = run.folder / "out/checkpoint-4/manifest.json"
    path.write_text(path.read_text().replace(f'"format": {manifest.FORMAT}', '"format": 1'))
    assert "checkpoint-4" in (line := refused(run, capsys)) and "format 1" in line
    assert run.checkpoints() == [2, 4]
