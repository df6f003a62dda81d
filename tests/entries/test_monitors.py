"""Names of metrics that no evaluation logs: refused before step 1, or with the state saved where they come up later."""

import pytest
from run_results import metrics
from small_runs import SmallRuns

import train
from loader.command_line.entry import command_line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return SmallRuns(tmp_path_factory.mktemp("monitors"))


def refused(run, capsys, text, **flags):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        command_line(run.new, text, **flags)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert left.value.code == 2 and len(errors) == 1, errors
    return errors[0]


@pytest.mark.parametrize(
    ("text", "key", "name"),
    [
        ("early_stopping: {monitor: val_los}", "early_stopping.monitor", "val_los"),
        ("checkpointing: {monitor: [loss, val/acuracy], mode: min}", "checkpointing.monitor", "val/acuracy"),
        ("metric_for_best_model: los\ngreater_is_better: false", "metric_for_best_model", "los"),
        ("scheduler: {name: ReduceLROnPlateau, monitor: eval_los, mode: min}", "scheduler.monitor", "eval_los"),
    ],
)
def test_a_name_that_no_evaluation_has_is_refused_before_step_1(run, capsys, text, key, name):
    text = text if "scheduler" in text else f"{text}\neval_steps: 1"
    text = text.replace("early_stopping: {monitor: val_los}", "early_stopping: {monitor: val_los, mode: min}")
    line = refused(run, capsys, text)
    assert f"`{key}: {name}` at " in line and f"new-{run.count}.yaml:" in line and "eval_loss" in line
    assert not (run.folder / f"new-{run.count}").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "early_stopping: {monitor: val/loss}",
        "early_stopping: {monitor: loss_action}",
        "early_stopping: {monitor: train/loss}",
        "early_stopping: {monitor: grad_norm, mode: min}",
        "checkpointing: {monitor: [eval_loss_action, eval_runtime], mode: min}",
        "early_stopping: {monitor: val_los, mode: min, strict: false}",
    ],
)
def test_names_that_are_logged_pass(run, text):
    assert run.new(text, eval_steps=2).state.global_step == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("early_stopping: {monitor: val_loss_x, mode: min}", "early_stopping: {monitor: val_loss, mode: min}"),
        ("checkpointing: {monitor: val_loss_x, mode: min}", "checkpointing: {monitor: val_loss, mode: min}"),
        ("metric_for_best_model: loss_x", "metric_for_best_model: loss"),
    ],
)
def test_a_name_that_only_the_first_evaluation_can_refute_leaves_with_the_state_saved(run, capsys, text, right):
    """The corrected run resumes there, and is the run that had the right name from the start."""
    common = "dataset: {chunk_size: 3}\nlearning_rate: 0.05"
    line = refused(run, capsys, f"{text}\n{common}", eval_steps=2, max_steps=6)
    out = f"new-{run.count}"
    assert "loss_x" in line and "checkpoint-2" in line and run.checkpoints(out) == [2]
    resumed = {"eval_steps": 2, "max_steps": 6, "resume_from_checkpoint": "auto", "resume_changed": "allow"}
    trainer = train.main(run.words(f"{right}\n{common}", out, **resumed))
    whole = run.new(f"{right}\n{common}", eval_steps=2, max_steps=6)
    assert trainer.state.global_step == 6
    for key in ("loss", "eval_loss"):
        assert metrics(run.folder / out, key) == metrics(run.folder / run.out, key)
    for name, value in whole.model.state_dict().items():
        assert value.equal(trainer.model.state_dict()[name])


BLIND_LOSS = """\
from dataclasses import dataclass

PROCESS_KEYS = frozenset()

@dataclass
class Config:
    pass

def build(config):
    def loss(outputs, batch):
        return {"loss": outputs["actions"].square().mean()}

    loss.targets = ("actions", "absent_entry")
    return loss
"""


@pytest.mark.slow
def test_an_evaluation_without_any_loss_is_an_error(run, capsys, monkeypatch):
    """A loss that asks for an entry which no batch has: its evaluation would score nothing, and say nothing."""
    (run.folder / "blind").mkdir()
    (run.folder / "blind" / "loss.py").write_text(BLIND_LOSS)
    monkeypatch.syspath_prepend(run.folder)
    line = refused(run, capsys, "loss: {name: blind.loss}\neval_steps: 2")
    assert "`eval`" in line and "absent_entry" in line and "is_pad" in line
