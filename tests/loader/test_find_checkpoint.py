"""Finding and verifying the checkpoint to resume from: what is missing or damaged is named; nothing is read twice."""

import collections
import json

import pytest
from checkpoint_folders import write_checkpoint

from loader.checks import static_checks
from loader.errors import ConfigError
from loader.output import render
from loader.resolve.resolver import resolve
from loader.resume import find_checkpoint as finding
from loader.resume.compatibility import resume_changes
from loader.resume.find_checkpoint import MODEL_ALONE, find_checkpoint, inspect
from storage import manifest

BASE = "max_steps: 100\nmodel: {hidden_dim: 16}\n"
ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "adaptation.json")
AVERAGES = ("ema.json", "ema.safetensors")
LARGE = 2 * manifest.ALWAYS_HASHED


@pytest.fixture
def run(in_root, tmp_path):
    """Resolves BASE with further lines, with its output in `out`."""

    def resolved(more=""):
        (tmp_path / "run.yaml").write_text(f"{BASE}output_dir: {tmp_path / 'out'}\n{more}")
        return resolve(training_config=tmp_path / "run.yaml")

    return resolved


@pytest.fixture
def checkpoint(run, tmp_path):
    return write_checkpoint(tmp_path, run())


def fault(run, folder, deep=False):
    """Why a checkpoint cannot be resumed from; None: it can."""
    point = inspect(run(), folder, deep)
    return point if isinstance(point, str) else None


def signed(checkpoint, **facts):
    """With a manifest of the files that are there."""
    content = manifest.read(checkpoint)
    manifest.write(checkpoint, step=content["step"], world_size=content["world_size"], **facts)
    return checkpoint


@pytest.mark.slow
def test_a_checkpoint_is_described(run, checkpoint):
    point = inspect(run(), checkpoint, deep=True)
    assert (point.step, point.total_steps, point.steps_per_epoch, point.batch) == (40, 100, 25, (8, 1, 1))
    assert point.run.model.config.hidden_dim == 16 and not point.is_weights_only
    assert not point.is_finished() and point.is_finished(40) and not point.is_finished(41)


@pytest.mark.slow
def test_one_resume_reads_and_verifies_once(run, tmp_path, monkeypatch):
    """`--check`, the summary and the start together resolve run.yaml once and hash each file once."""
    folder = write_checkpoint(tmp_path / "out", run())
    (folder / "model.safetensors").write_bytes(bytes(LARGE))
    signed(folder)
    hashed, resolved, entry, read_saved = collections.Counter(), [], manifest.entry, finding.read_saved
    monkeypatch.setattr(manifest, "entry", lambda path: hashed.update([path.name]) or entry(path))
    monkeypatch.setattr(finding, "read_saved", lambda *arguments: resolved.append(1) or read_saved(*arguments))
    current = run("resume_from_checkpoint: auto\n")
    assert static_checks.check_run(current) == []
    assert "resumed from checkpoint-40" in render.summary(current)
    assert "model.safetensors" not in hashed  # `--check` does not read large files
    point, skipped = find_checkpoint(current, deep=True)
    assert resume_changes(current, point, 100).problems == [] and skipped == {}
    assert len(resolved) == 1 and set(hashed.values()) == {1}
    assert set(hashed) == {path.name for path in folder.iterdir()} - {manifest.NAME}


@pytest.mark.slow
def test_a_checkpoint_that_has_changed_is_verified_again(run, checkpoint):
    current = run()
    assert inspect(current, checkpoint).step == 40
    (checkpoint / "optimizer.json").unlink()
    assert inspect(current, checkpoint) == "has no optimizer.json"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.json", "scheduler.json", "rng-0.json", "run.yaml", "manifest.json"])
def test_a_missing_file_is_named(run, checkpoint, name):
    (checkpoint / name).unlink()
    assert fault(run, checkpoint) == f"has no {name}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("scheduler.json", "trainer_state.json", "run.yaml", "rng-0.json", "optimizer.json", "log_interval.json"),
        *("adapter_config.json", "adaptation.json", "ema.json", "ema.safetensors"),
    ],
)
def test_a_file_that_the_manifest_does_not_list_is_named_too(run, checkpoint, name):
    for other in (*ADAPTER, *AVERAGES):
        (checkpoint / other).write_text('{"updates": 0}')
    assert fault(run, signed(checkpoint)) is None
    (checkpoint / name).unlink()
    assert fault(run, signed(checkpoint)) == f"has no {name}"


@pytest.mark.slow
def test_there_must_be_weights(run, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert fault(run, signed(checkpoint)) == "has no model weights"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer-00001-of-00002.json", "global_step40/bf16_zero_optim_states.pt"])
def test_an_optimizer_state_may_be_sharded(run, checkpoint, name):
    (checkpoint / "optimizer.json").unlink()
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text("{}")
    assert fault(run, signed(checkpoint)) is None


@pytest.mark.slow
def test_weights_alone_are_enough_only_for_a_finished_run(run, tmp_path):
    alone = signed(write_checkpoint(tmp_path, run(), step=40), resumable=False)
    assert fault(run, alone) == MODEL_ALONE
    finished = signed(write_checkpoint(tmp_path, run(), step=100), resumable=False)
    point = inspect(run(), finished)
    assert point.is_weights_only and resume_changes(run(), point).problems == []
    longer = resolve(None, ["max_steps=200"], tmp_path / "run.yaml")
    (problem,) = resume_changes(longer, point).problems
    assert problem.startswith("`max_steps: 200` in --set") and MODEL_ALONE in problem


@pytest.mark.slow
def test_a_flipped_byte_in_a_large_file_shows_only_to_a_deep_verification(run, checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(bytes(LARGE))
    signed(checkpoint)
    weights.write_bytes(b"\1" + bytes(LARGE - 1))
    assert fault(run, checkpoint) is None
    assert "model.safetensors" in fault(run, checkpoint, deep=True)


@pytest.mark.slow
def test_a_folder_of_another_step(run, checkpoint):
    assert fault(run, checkpoint.rename(checkpoint.with_name("checkpoint-80"))) == "holds the state of step 40"


@pytest.mark.slow
def test_pickles_are_refused(run, checkpoint):
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "optimizer.pt").write_bytes(b"\x80")
    assert "optimizer.pt" in fault(run, checkpoint)


@pytest.mark.slow
def test_auto_takes_the_newest_complete_checkpoint(run, tmp_path):
    current = run("resume_from_checkpoint: auto\n")
    for step in (9, 40, 100):
        write_checkpoint(tmp_path / "out", current, step=step)
    (tmp_path / "out/checkpoint-100/optimizer.json").unlink()
    point, skipped = find_checkpoint(current)
    assert point.step == 40 and skipped == {tmp_path / "out/checkpoint-100": "has no optimizer.json"}
    assert static_checks.check_run(current) == [] and finding.superseded(current, point) == []


@pytest.mark.slow
def test_auto_or_else_a_named_checkpoint(run, tmp_path):
    """For a job that is started again, and that may have been stopped before its first save."""
    current = run(f"resume_from_checkpoint: auto:{tmp_path / 'first/checkpoint-40'}\n")
    (problem,) = static_checks.check_run(current)
    assert "first/checkpoint-40` at" in problem
    named = write_checkpoint(tmp_path / "first", current)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.jsonl").write_text('{"step": 41}\n')
    assert find_checkpoint(current, deep=True).point.folder == named and static_checks.check_run(current) == []
    broken = write_checkpoint(tmp_path / "out", current, step=60)
    (broken / "optimizer.json").unlink()
    assert find_checkpoint(current, deep=True).point.folder == named and static_checks.check_run(current) == []
    newest = write_checkpoint(tmp_path / "out", current, step=50)
    assert find_checkpoint(current, deep=True).point.folder == newest and static_checks.check_run(current) == []


@pytest.mark.parametrize("value", ["''", "newest", "nowhere/checkpoint-3"])
def test_what_must_be_there_is_not(run, value):
    current = run(f"resume_from_checkpoint: {value}\n")
    with pytest.raises(ConfigError) as error:
        find_checkpoint(current)
    assert "run.yaml:4:1" in str(error.value) and static_checks.check_run(current) == error.value.problems


@pytest.mark.slow
def test_a_named_checkpoint_supersedes_later_ones(run, tmp_path):
    current = run(f"resume_from_checkpoint: {tmp_path / 'out/checkpoint-9'}\n")
    folders = [write_checkpoint(tmp_path / "out", current, step=step) for step in (9, 40, 100)]
    assert finding.superseded(current, find_checkpoint(current).point) == folders[1:]


@pytest.mark.slow
def test_the_history_of_changes_is_carried_on(run, checkpoint):
    outcome = resume_changes(run("seed: 3\nresume_changed: allow\n"), inspect(run(), checkpoint))
    (entry,) = outcome.history()
    assert entry["step"] == 40 and entry["changed"]["seed"] | {"origin": ""} == {"before": 42, "after": 3, "origin": ""}
    (checkpoint / "resumed.json").write_text(json.dumps([{"step": 10, "changed": {}}]))
    assert [change["step"] for change in outcome.history()] == [10, 40]
    outcome.record.clear()
    assert [change["step"] for change in outcome.history()] == [10]
