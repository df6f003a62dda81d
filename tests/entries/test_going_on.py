"""Going on with a run: what a checkpoint must hold beside weights, and which checkpoint and model count."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_runs import SmallRuns, weights

import train
from loader.resume.find_checkpoint import fault

pytestmark = pytest.mark.slow  # whole small runs, many of them

BEST = "load_best_model_at_end: true\nsave_strategy: steps\neval_steps: 2\nsave_steps: 2"


@pytest.fixture
def run(in_root, tmp_path):
    return SmallRuns(tmp_path)


def logged(run, out):
    """metrics.jsonl without what depends on the clock and the machine."""
    lines = [json.loads(line) for line in (run.folder / out / "metrics.jsonl").read_text().splitlines()]
    clock = ("second", "runtime", "_ms", "memory", "train_loss")
    return [{name: value for name, value in line.items() if not any(each in name for each in clock)} for line in lines]


def cut_back(run, out, step):
    """A copy of a run's folder as a kill after checkpoint `step` would have left it."""
    copy = run.folder / f"{out}-again"
    shutil.copytree(run.folder / out, copy, symlinks=True)
    for path in copy.glob("checkpoint-*"):
        if int(path.name[11:]) > step:
            shutil.rmtree(path)
    return copy.name


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
    """The resumed run's lines, rates, decisions and weights are those of the run that was never stopped."""
    text += "\nsave_strategy: steps\nsave_steps: 4\nlogging_steps: 5\nmax_steps: 11\nlr_scheduler_type: constant"
    lines = dict(line.split(": ", 1) for line in text.splitlines())  # a later line of a key counts
    if "scheduler" in lines:
        del lines["lr_scheduler_type"]
    text = "\n".join(f"{key}: {value}" for key, value in lines.items())
    whole = weights(run(text, out="whole"))
    again = cut_back(run, "whole", 4)
    resumed = run(text, out=again, resume_from_checkpoint="auto")
    assert all(torch.equal(value, whole[name]) for name, value in weights(resumed).items())
    assert logged(run, again) == logged(run, "whole")


def test_a_finished_run_keeps_its_best_model(run):
    text = "load_best_model_at_end: true\nsave_strategy: steps\nsave_steps: 2\neval_steps: 2\n"
    text += "metric_for_best_model: eval_loss\ngreater_is_better: true"  # the worst, so that it is not the last
    run(text, max_steps=8)
    before = load_file(run.folder / "out/model.safetensors")
    best = json.loads((run.folder / "out/checkpoint-8/trainer_state.json").read_text())["best_model_checkpoint"]
    assert not best.endswith("checkpoint-8")  # else this test would not see a difference
    run(text, max_steps=8, resume_from_checkpoint="auto")
    after = load_file(run.folder / "out/model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_going_on_from_an_earlier_checkpoint_leaves_the_old_course(run, capsys):
    text = "save_strategy: steps\nsave_steps: 2"
    run(text, max_steps=6)
    (run.folder / "out/superseded-checkpoint-4").mkdir()  # of an earlier time
    checkpoint = str(run.folder / "out/checkpoint-2")
    run(f"{text}\nresume_lr: 0.5", max_steps=6, resume_from_checkpoint=checkpoint)
    assert f"resuming from {checkpoint}" in capsys.readouterr().out
    names = {path.name for path in (run.folder / "out").glob("superseded-*")}
    assert names == {"superseded-checkpoint-4", "superseded-2-checkpoint-4", "superseded-checkpoint-6"}
    assert run.checkpoints() == [2, 4, 6] and run.log("learning_rate")[6] == 0.5


def test_a_job_that_is_started_again_before_it_has_saved_anything(run):
    """`auto:FOLDER`, as the job script says it: from the named checkpoint again, later from the run's own."""
    text = "save_strategy: steps\nsave_steps: 4\nmax_steps: 8"
    whole = weights(run(text, out="whole"))
    named = run.folder / "whole/checkpoint-4"
    stops = text.replace("save_steps: 4", "save_steps: 50") + "\ncallbacks: [{name: small_runs.StopsAfter, step: 6}]"
    run(stops, out="job", resume_from_checkpoint=named)
    assert run.checkpoints("job") == [] and sorted(run.log("loss", "job")) == [5, 6]
    (run.folder / "job/model.safetensors").unlink()  # the job was killed
    again = run(text, out="job", resume_from_checkpoint=f"auto:{named}")
    assert all(torch.equal(value, whole[name]) for name, value in weights(again).items())
    assert sorted(run.log("loss", "job")) == [5, 6, 7, 8] and run.checkpoints("job") == [8]
    longer = run(text.replace("max_steps: 8", "max_steps: 10"), out="job", resume_from_checkpoint=f"auto:{named}")
    assert longer.state.global_step == 10 and sorted(run.log("loss", "job")) == [5, 6, 7, 8, 9, 10]


def test_the_rates_that_are_shown_are_those_of_the_resumed_run(run, capsys):
    run("save_strategy: steps\nsave_steps: 2", max_steps=4)
    shutil.rmtree(run.folder / "out/checkpoint-4")
    capsys.readouterr()
    run("save_strategy: steps\nsave_steps: 2\nresume_lr: 0.25", max_steps=4, resume_from_checkpoint="auto")
    shown = capsys.readouterr().out
    assert "0.25 at 0" in shown and json.loads((run.folder / "out/adaptation.json").read_text())
    assert "0.01" not in [word for line in shown.splitlines() if line.startswith("total") for word in line.split()]


def test_samples_are_counted_as_they_are(run):
    """A batch larger than the data holds the data, and the last batch of an epoch what is left."""
    run(per_device_train_batch_size=500, max_steps=2, logging_steps=2)
    record = run.log("samples_per_second")[2] * run.log("step_ms")[2] / 1000
    assert record == pytest.approx(12, rel=0.01)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("num_train_epochs: 2\nmax_steps: -1\nwarmup_steps: 7", "the warm-up of 7 steps is not shorter than the run"),
        ("num_train_epochs: 2\nmax_steps: -1\nwarmup_epochs: 2", "the warm-up of 6 steps"),
        ("max_steps: 9\nlr_decay_iters: 3\nlr_scheduler_type: cosine\nwarmup_epochs: 2", "ends after 3 steps, before"),
        ("min_lr: 0.001\nlr_scheduler_type: linear\nresume_lr: 0.0001", "`resume_lr: 0.0001`"),
        ("checkpointing: {dirpath: /etc/passwd}", "`checkpointing.dirpath: /etc/passwd`"),
        ("logging: {logger_type: CSVLogger, save_dir: /etc/passwd}", "`logging.save_dir: /etc/passwd`"),
        ("optimizer: {name: SGD, momentum: -1}", "optimizer `SGD`"),
        ("gradient_checkpointing: true", "model mlp has no layers to recompute"),
        ("log_level: bogus", "must be one of"),
        (f"metric_for_best_model: nonsense\n{BEST}", "`metric_for_best_model: nonsense` is not logged"),
    ],
)  # fmt: skip
def test_one_line_for_what_cannot_be(run, capsys, text, says):
    lines = dict(line.split(": ", 1) for line in f"max_steps: 4\n{text}".splitlines())
    with pytest.raises(SystemExit) as left:
        run("\n".join(f"{key}: {value}" for key, value in lines.items()))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1 and says in errors[0]


@pytest.mark.parametrize(
    "text",
    [
        "max_steps: 60\nwarmup_ratio: 0.1\nlr_decay_iters: 50\nlr_scheduler_type: cosine",
        "max_steps: 30\nlr_decay_iters: 20\nmin_lr: 1.0e-4\nlr_scheduler_type: cosine\nwarmup_epochs: 1.5",
    ],
)
def test_schedules_are_tried_at_their_real_length(run, text):
    with pytest.raises(SystemExit) as left:
        train.main([*run.words(text), "--check"])
    assert left.value.code == 0
    run(text + "\ncallbacks: [{name: small_runs.StopsAfter, step: 1}]")


@pytest.mark.parametrize(
    ("name", "harm", "says"),
    [
        ("ema.safetensors", "cut", "has a truncated ema.safetensors ("),
        ("ema.safetensors", "gone", "has no ema.safetensors"),
        ("ema.json", "cut", "has a truncated ema.json ("),
        ("rng-0.json", "cut", "has a truncated rng-0.json ("),
        ("run.yaml", "gone", "has no run.yaml"),
        ("run.yaml", "cut", "has a truncated run.yaml ("),
        ("config.json", "cut", "has a truncated config.json ("),
        ("statistics.json", "cut", "has a truncated statistics.json ("),
        ("manifest.json", "gone", "has no manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(run, capsys, name, harm, says):
    text = "using_ema: true\nsave_strategy: steps\nsave_steps: 2"
    whole = weights(run(text))
    file = run.folder / "out/checkpoint-4" / name
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert fault(file.parent).startswith(says)
    resumed = run(text, resume_from_checkpoint="auto")
    assert f"skipping checkpoint-4: it {says}" in capsys.readouterr().out
    assert all(torch.equal(value, whole[key]) for key, value in weights(resumed).items())
