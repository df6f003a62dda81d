"""Checkpoints whose small state files say what no run would, under a manifest that fits them, and files of a run's
folder that are none: `auto` passes over, a named one is refused, each with one line."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file
from small_runs import SmallRuns

import eval as evaluation
import train
from loader.resume import find_checkpoint
from storage import manifest

pytestmark = pytest.mark.slow

TEXT = """\
save_strategy: steps
save_steps: 2
eval_steps: 2
logging_steps: 3
max_steps: 6
using_ema: true
early_stopping: {monitor: val/loss, patience: 9}
checkpointing: {monitor: val/loss, save_top_k: 1, every_n_epochs: 0}
lr_scheduler_type: ReduceLROnPlateau
scheduler: {monitor: loss, patience: 0, factor: 0.5, interval: step}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was killed in its fifth step, in `out`: checkpoints 2 and 4, the fourth in the middle of a log
    interval."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEEL_HOME", str(folder / "home"))
        runs = SmallRuns(folder)
        runs(TEXT)
    shutil.rmtree(folder / "out/checkpoint-6")
    for name in ("model.safetensors", manifest.NAME):
        (folder / "out" / name).unlink()
    return runs


@pytest.fixture
def out(run, tmp_path):
    shutil.copytree(run.folder / "out", tmp_path / "out", symlinks=True)
    return tmp_path / "out"


@pytest.fixture
def start(run, out, capsys):
    """`start(checkpoint)`: the run goes on in `out`; its exit code and what it said on stdout and as errors."""

    def started(checkpoint="auto", *more):
        capsys.readouterr()
        words = run.words(TEXT, resume_from_checkpoint=checkpoint)
        words[words.index("--output_dir") + 1] = str(out)
        code = 0
        try:
            train.main([*words, *more])
        except SystemExit as left:
            code = left.code
        said = capsys.readouterr()
        return code, said.out.splitlines(), [line for line in said.err.splitlines() if line.startswith("error:")]

    return started


def sign(checkpoint):
    told = manifest.read(checkpoint)
    facts = {name: value for name, value in told.items() if name not in ("format", "files", "step", "world_size")}
    manifest.write(checkpoint, step=told["step"], world_size=told["world_size"], **facts)


def edit(checkpoint, name, place, value):
    """Puts a value at a place (`stateful_callbacks/kept checkpoints/saved`) of a JSON file; `...` takes it out."""
    content = found = json.loads((checkpoint / name).read_text())
    *path, last = [int(part) if part.isdecimal() else part for part in place.split("/")]
    for part in path:
        found = found[part]
    if value is ...:
        del found[last]
    else:
        assert isinstance(found, list) or last in found or value == 1, place  # else the edit would test nothing
        found[last] = value
    (checkpoint / name).write_text(json.dumps(content))
    sign(checkpoint)


CALLBACKS, KEPT = "stateful_callbacks", "stateful_callbacks/kept checkpoints"
STOPPING = "stateful_callbacks/early stopping on eval_loss, min, 0"
POSITION = "stateful_callbacks/position in the data"
INFINITE, NOT_A_NUMBER, HUGE = float("inf"), float("nan"), 10**30
EDITS = {
    "trainer_state.json": {
        "global_step": [None, "4", 4.0, True, -1, ...],
        "max_steps": [None, "x", True, ...],
        "epoch": ["x", INFINITE, NOT_A_NUMBER, -1, HUGE, [], True],
        "train_batch_size": ["x", 0, -4, 0.5],
        "total_flos": ["x", []],
        "log_history": [None, [1, 2], {}, "ab", [None], [{"step": "a"}], [{"loss": 1.0}], ...],
        "log_history/0": [1, [], {"step": 2, "eval_loss": "x"}, {"step": 2, "loss": {}}, {"step": 2, "a": HUGE**20}],
        "best_metric": ["x", {}],
        "best_global_step": ["z", -1, 0.5],
        "best_model_checkpoint": [5, [], {}],
        CALLBACKS: [None, [], {}, "x", ...],
        f"{CALLBACKS}/TrainerControl": [None, 1, ...],
        KEPT: [1, "x", None, {}, []],
        f"{KEPT}/saved": [None, "ab", ["x"], ["0/../../victim"], [0.5], {}, ...],
        f"{KEPT}/stopgaps": [["0/../../victim"], 1],
        f"{KEPT}/others": [[None], 7],
        f"{KEPT}/held_at": ["x", None, ...],
        f"{KEPT}/monitors": [[], 1, {"eval_loss": 1}, {"eval_loss": {}}],
        f"{KEPT}/monitors/eval_loss/best": [None, [1], [["x", 2]], [[1.0, None]], [[1.0]], [[NOT_A_NUMBER, 2]]],
        f"{KEPT}/monitors/eval_loss/checked": ["x", None],
        f"{KEPT}/monitors/eval_loss/metric": [1, []],
        STOPPING: [1, "x", None, [], {}],
        f"{STOPPING}/progress": [None, {}, 1, {"foo": 1}],
        f"{STOPPING}/progress/foo": [1],
        f"{STOPPING}/progress/wait": ["x", None, -1],
        f"{STOPPING}/progress/best": ["x", []],
        f"{STOPPING}/settings": [None, 1],
        f"{STOPPING}/epoch_ended": ["x", None],
        POSITION: [1, {}, None, "x"],
        f"{POSITION}/steps_per_epoch": ["x", 0, -3, 1.5, HUGE, None, ...],
        f"{POSITION}/samples_per_step": [0, HUGE],
        f"{POSITION}/steps_before": [1.5, "x", HUGE],
        f"{POSITION}/foo": [1],
    },
    "log_interval.json": {
        "last_logged": ["x", None, ...],
        "loss": ["x", None, [[1]], {"a": {}}, {"$float": "x"}, {"$tensor": "a"}, ...],
        "followed_loss": [[], ...],
        "followed_steps": ["x", 0.5, -1],
        "terms": [[], 1, {"a": "b"}, {"a": [1]}, {"a": [1, INFINITE]}],
        "norms": [[1], "ab", "/etc/passwd", [1, "x"], None],
        "skipped": ["x", {}],
        "due": [[1], "abc", {"evaluate": True}, {"x": 1}, None, ...],
    },
    "scheduler.json": {
        "name": [None, 1, ...],
        "taken": ["x", None, -5, HUGE, 5, 10**12, ...],
        "course": ["x", [], {"length": "x"}],
        "metrics_seen": ["x", None, ...],
        "base_lrs": [HUGE, None, "x", ["x"], ...],
        "last_rates": ["x", [None]],
        "curve": [None, "x", [], ...],
        "curve/num_bad_epochs": ["x", [], 0.5],
        "curve/best": ["x", []],
        "curve/rates": ["x", [None]],
    },
    "ema.json": {"updates": ["x", None, -5, 1.5, ...]},
}


@pytest.mark.parametrize("name", EDITS)
def test_a_state_that_no_run_would_have_written_is_no_whole_checkpoint(out, name):
    checkpoint = out / "checkpoint-4"
    whole = (checkpoint / name).read_text()
    for place, value in [(place, value) for place, values in EDITS[name].items() for value in values]:
        (checkpoint / name).write_text(whole)
        edit(checkpoint, name, place, value)
        why = find_checkpoint.fault(checkpoint)
        assert why is not None and name in why and why.isprintable() and len(why) < 200, (place, value)


@pytest.mark.parametrize("name", [*EDITS, "skipped_steps.json", "resumed.json"])
def test_whole_files_that_are_something_else(out, name):
    for text in ("null", "7", '"x"', "[" * 100_000, "9" * 10_000, "\0", "", '{"a": 1}', "[1]"):
        (out / "checkpoint-4" / name).write_text(text)
        sign(out / "checkpoint-4")
        assert name in find_checkpoint.fault(out / "checkpoint-4"), text[:20]


def test_what_a_run_writes_is_whole(out):
    for value in (INFINITE, NOT_A_NUMBER):  # a loss may be so
        edit(out / "checkpoint-4", "trainer_state.json", "log_history/0/eval_loss", value)
        edit(out / "checkpoint-4", "log_interval.json", "loss", {"$float": str(value)})
        assert find_checkpoint.fault(out / "checkpoint-4") is None


def test_auto_passes_over_it_and_a_named_one_is_refused(out, start):
    edit(out / "checkpoint-4", "log_interval.json", "norms", [1])
    code, _, errors = start(out / "checkpoint-4")
    assert code == 2 and len(errors) == 1 and "has a damaged log_interval.json (norms)" in errors[0]
    code, said, errors = start()
    skipped = [line for line in said if line.startswith("skipping")]
    assert code == 0 and not errors
    assert len(skipped) == 1 and skipped[0].startswith(
        "skipping checkpoint-4: it has a damaged log_interval.json (norms)"
    )


# What only the loading or the first step shows.
LATER = {
    "trainer_state.json": {"evil": [1], f"{POSITION}/steps_before": [-10]},
    "scheduler.json": {"curve/average": [{"a": 1}]},
    "optimizer.json": {
        "param_groups/0/betas": [[0.1], "x", ...],
        "param_groups/0/weight_decay": ["x"],
        "param_groups/0/params": [[0]],
        "param_groups": ["x", []],
        "state": ["x", {"$dict": [1]}],
        "state/$dict/0/1/exp_avg": [{"$tensor": "state.2.exp_avg"}, 5, {"$tensor": "nope"}, ...],
    },
    "rng-0.json": {"python": [[], None], "torch": ["!", 5, "AAAA"]},
}
LATE = [(name, place, value) for name, places in LATER.items() for place, values in places.items() for value in values]


def test_what_shows_when_it_is_loaded_is_one_line_too(out, start):
    whole = out.parent / "whole"
    shutil.copytree(out, whole, symlinks=True)
    for name, place, value in LATE:
        shutil.rmtree(out)
        shutil.copytree(whole, out, symlinks=True)
        edit(out / "checkpoint-4", name, place, value)
        code, _, errors = start()
        assert code == 2 and len(errors) == 1 and "checkpoint-4" in errors[0], (place, value, code, errors)


# ---- files of the run's folder, and of a checkpoint, that are none ----


def test_lines_of_a_log_that_are_none_are_dropped(out, start):
    with open(out / "metrics.jsonl", "a") as file:
        file.write("[" * 100_000 + "\n" + '{"step": ' + "9" * 10_000 + "}\n")
    assert start()[0] == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 6


def test_a_folder_where_the_run_writes_a_file(out, start):
    for name in ("run.yaml", "statistics.json"):
        (out / name).unlink()
        (out / name).mkdir()
        code, _, errors = start()
        assert code == 2 and len(errors) == 1 and f"{out / name}: is a folder" in errors[0]
        (out / name).rmdir()
        (out / name).write_text("")


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_what_nobody_should_open_in_a_checkpoint(out, start, capsys, kind):
    def put(path):
        path.unlink(missing_ok=True)
        os.mkfifo(path) if kind == "a pipe" else path.symlink_to("/dev/zero")

    put(out / "checkpoint-4/log_interval.json")
    code, said, errors = start()
    assert code == 0 and [line for line in said if line.startswith("skipping checkpoint-4")] and not errors
    for name in ("statistics.json", "generation_config.json", "run.yaml"):
        aside = (out / "checkpoint-6" / name).rename(out / "aside") if name != "generation_config.json" else None
        put(out / "checkpoint-6" / name)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            evaluation.main(["--checkpoint", str(out / "checkpoint-6"), "--device", "cpu"])
        lines = capsys.readouterr().err.splitlines()
        assert left.value.code == 2 and len(lines) == 1 and name in lines[0]
        assert name == "run.yaml" or f"{name}, which is {kind}, not a file" in lines[0]
        (out / "checkpoint-6" / name).unlink()
        if aside:
            aside.rename(out / "checkpoint-6" / name)


def test_scores_of_damaged_weights_are_json_and_said_to_be_lost(out, capsys, tmp_path):
    weights = load_file(out / "checkpoint-4/model.safetensors")
    save_file({name: each * float("nan") for name, each in weights.items()}, out / "checkpoint-4/model.safetensors")
    capsys.readouterr()
    words = ["--checkpoint", str(out / "checkpoint-4"), "--device", "cpu", "--json", str(tmp_path / "scores")]
    assert evaluation.main(words)["loss"] != evaluation.main(words)["loss"]  # not a number
    said = capsys.readouterr()
    warned = [line for line in said.err.splitlines() if line.startswith("warning: not finite: loss")]
    assert len(warned) == 2 and "checkpoint-4" in warned[0]
    for text in (said.out.splitlines()[-1], (tmp_path / "scores").read_text()):
        assert json.loads(text, parse_constant=pytest.fail)["loss"] == "nan"
