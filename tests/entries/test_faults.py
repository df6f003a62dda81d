"""Damage to a run's folder between two starts, and disks that fail during training.

The run must end like the uninterrupted one: weights, optimizer, EMA, RNG states and metrics are compared.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_results import error_line
from text_sets import write_set

import train
from storage import manifest
from trainer.callbacks.model_checkpoint import ModelCheckpoint
from trainer.checkpointing import async_writer
from trainer.run_differences import differences
from trainer.serialization import state_dict_io

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS, EVERY = 12, 2
TINY = """\
model_config: gpt
model: {n_layer: 1, n_head: 2, n_embd: 16, dropout: 0.2}
dataset: {name: text, path: FOLDER/set, block_size: 16}
cache_dir: FOLDER/cache
max_steps: 12
save_steps: 2
eval_steps: 4
logging_steps: 1
learning_rate: 0.01
lr_scheduler_type: cosine
gradient_accumulation_steps: 2
per_device_train_batch_size: 4
per_device_eval_batch_size: 4
limit_val_batches: 2
sample_tokens: 0
using_ema: true
ema: {decay: 0.9}
report_to: none
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data set, a training file, and in `whole` the uninterrupted run."""
    folder = tmp_path_factory.mktemp("faults")
    write_set(folder / "set")
    (folder / "tiny.yaml").write_text(TINY.replace("FOLDER", str(folder)))
    trained(folder, folder / "whole")
    return folder


def trained(home, out, *words):
    return train.main(["--training_config", str(home / "tiny.yaml"), "--output_dir", str(out), *words])


def resumed(home, out, *words):
    return trained(home, out, "--resume_from_checkpoint", "auto", *words)


@pytest.fixture
def stopped(home, tmp_path):
    """The run after a power failure in its eleventh step: checkpoints 2 to 10, no final model."""
    out = tmp_path / "out"
    shutil.copytree(home / "whole", out, symlinks=True)
    shutil.rmtree(out / f"checkpoint-{STEPS}")
    (out / "model.safetensors").unlink()
    (out / manifest.NAME).unlink()
    return out


def steps_of(out):
    return sorted(int(path.name[11:]) for path in out.glob("checkpoint-*"))


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def name_outside(folder):
    """The manifest names a file outside of the folder, with its true size and hash."""
    outside = folder.parent / "outside"
    outside.write_text("outside")
    edit(folder / manifest.NAME, lambda content: content["files"].update({"../outside": manifest.entry(outside)}))


def link_outside(folder):
    """A file is a symlink to its content elsewhere."""
    shutil.move(folder / "optimizer.safetensors", folder.parent / "moved")
    (folder / "optimizer.safetensors").symlink_to("../moved")


def change_seed(folder):
    """run.yaml is valid and has the same length."""
    path = folder / "run.yaml"
    assert b"\nseed: 42" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"\nseed: 42", b"\nseed: 43"))


DAMAGE = {
    "truncated": (lambda folder: cut(folder / "model.safetensors"), "model.safetensors"),
    "flipped bit": (lambda folder: flip(folder / "model.safetensors"), "model.safetensors"),
    "another configuration": (change_seed, "run.yaml"),
    "no optimizer": (lambda folder: (folder / "optimizer.json").unlink(), "optimizer.json"),
    "no manifest": (lambda folder: (folder / manifest.NAME).unlink(), manifest.NAME),
    "a path out of the folder": (name_outside, "../outside"),
    "a symlink out of the folder": (link_outside, "optimizer.safetensors"),
}


@pytest.mark.parametrize("name", [*DAMAGE, None])
def test_auto_skips_a_damaged_checkpoint(home, stopped, capsys, name):
    if name is not None:
        damage, file = DAMAGE[name]
        damage(stopped / "checkpoint-10")
        named = error_of(capsys, home, stopped, "--resume_from_checkpoint", str(stopped / "checkpoint-10"))
        assert "checkpoint-10" in named and file in named
    resumed(home, stopped)
    shown = capsys.readouterr().out
    assert f"resuming from {stopped / ('checkpoint-10' if name is None else 'checkpoint-8')}\n" in shown
    skipped = [line for line in shown.splitlines() if line.startswith("skipping")]
    assert len(skipped) == (name is not None) and all("checkpoint-10" in line and file in line for line in skipped)
    assert differences(home / "whole", stopped) == [] and steps_of(stopped) == steps_of(home / "whole")


def test_all_checkpoints_are_damaged(home, stopped, capsys):
    """`newest` refuses; `auto` starts a new run."""
    for step in steps_of(stopped):
        flip(stopped / f"checkpoint-{step}" / "model.safetensors")
    assert "newest" in error_of(capsys, home, stopped, "--resume_from_checkpoint", "newest")
    resumed(home, stopped)
    shown = capsys.readouterr().out
    skipped = [line.split(":")[0] for line in shown.splitlines() if line.startswith("skipping")]
    assert "resuming" not in shown and skipped == [f"skipping checkpoint-{step}" for step in (10, 8, 6, 4, 2)]
    assert differences(home / "whole", stopped) == []


def error_of(capsys, home, out, *words):
    """The error line of a run that does not start; no file changes."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    line = error_line(capsys, trained, home, out, *words)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    return line


@pytest.mark.parametrize("harm", [flip, os.unlink])
def test_a_missing_or_damaged_final_model_is_written_again(home, stopped, capsys, harm):
    shutil.rmtree(stopped)
    shutil.copytree(home / "whole", stopped, symlinks=True)
    harm(stopped / "model.safetensors")
    lines = (stopped / "metrics.jsonl").read_text()
    resumed(home, stopped)
    assert "nothing is left to train" in capsys.readouterr().out
    assert differences(home / "whole", stopped) == [] and (stopped / "metrics.jsonl").read_text() == lines


# ---- another run ----


@pytest.mark.parametrize("shared", ["output_dir", "checkpointing.dirpath"])
def test_a_folder_that_another_run_holds(home, tmp_path, capsys, shared):
    out, theirs = tmp_path / "out", tmp_path / ("out" if shared == "output_dir" else "checkpoints")
    code = "import sys, time\nfrom pathlib import Path\nfrom storage.lock import RunLock\n"
    code += "RunLock(Path(sys.argv[1])).take()\nprint('held', flush=True)\ntime.sleep(300)\n"
    more = [] if shared == "output_dir" else ["--set", f"checkpointing.dirpath={theirs}"]
    words = [sys.executable, "-c", code, str(theirs)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        line = error_of(capsys, home, out, *more)
        assert f"{theirs} is in use by process {process.pid} on " in line and "--output_dir" in line
        assert process.poll() is None and sorted(os.listdir(theirs)) == [".run.lock"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    trained(home, out, *more)  # the lock of the killed process is taken over
    assert differences(home / "whole", out) == []


# ---- the disk, while a run trains ----


@contextlib.contextmanager
def failing(monkeypatch, owner, name, error, at):
    """`owner.name` raises `error` while the checkpoints of the steps `at` are saved."""
    real, seen = getattr(owner, name), []

    def fails(place, *arguments, **options):
        text = str(arguments[0]) if name == "save_file" else str(place)
        step = next((step for step in range(EVERY, STEPS + 1, EVERY) if f"checkpoint-{step}." in text), None)
        if step in at:
            seen.append(step)
            raise error
        return real(place, *arguments, **options)

    monkeypatch.setattr(owner, name, fails)
    yield seen
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("place", "number", "background"),
    [
        ((state_dict_io, "save_file"), errno.ENOSPC, "true"),
        ((async_writer.manifest, "write"), errno.EDQUOT, "false"),
        ((async_writer, "publish"), errno.EROFS, "true"),
    ],
)
def test_a_failed_save_does_not_end_training(home, tmp_path, capsys, monkeypatch, place, number, background):
    """The previous checkpoint stays despite the limit, and a successful save resets the count of failures."""
    out = tmp_path / "out"
    more = ["--save_total_limit", "1", "--set", f"save_in_background={background}", "--set", "max_failed_saves=2"]
    with failing(monkeypatch, *place, OSError(number, os.strerror(number)), at={4, 8}) as seen:
        trained(home, out, *more)
    assert sorted(set(seen)) == [4, 8]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ERROR")]
    assert [line.split()[1] for line in lines] == ["checkpoint-4", "checkpoint-8"]
    for line, kept in zip(lines, ("checkpoint-2", "checkpoint-6"), strict=True):
        assert os.strerror(number) in line and kept in line
    assert steps_of(out) == [12] and differences(home / "whole", out) == []


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_disk_that_is_slower_than_training(home, tmp_path, monkeypatch, background):
    """Each save is still being written when the next is due: none is skipped, and `on_save` is fired for each."""

    def slowly(staged, final):
        time.sleep(0.2)
        publish(staged, final)

    def on_save(self, args, state, control, **kwargs):
        fired.append(state.global_step)
        fire(self, args, state, control, **kwargs)

    publish, fire, fired = async_writer.publish, ModelCheckpoint.on_save, []
    monkeypatch.setattr(async_writer, "publish", slowly)
    monkeypatch.setattr(ModelCheckpoint, "on_save", on_save)
    out = tmp_path / "out"
    trained(home, out, "--save_total_limit", "2", "--set", f"save_in_background={background}")
    assert fired == [2, 4, 6, 8, 10, 12]
    assert steps_of(out) == [10, 12] and differences(home / "whole", out) == []


def test_too_many_failed_saves_end_the_run(home, tmp_path, capsys, monkeypatch):
    out, error = tmp_path / "out", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with failing(monkeypatch, state_dict_io, "save_file", error, at={4, 6, 8, 10, 12}) as seen:
        assert "max_failed_saves" in error_line(capsys, trained, home, out, code=1)
    assert sorted(set(seen)) == [4, 6, 8]
    assert steps_of(out) == [2] and not list(out.glob(".saving-*")) and not (out / ".run.lock").exists()
    assert manifest.verify(out / "checkpoint-2") is None
    resumed(home, out)
    assert f"resuming from {out / 'checkpoint-2'}" in capsys.readouterr().out
    assert differences(home / "whole", out) == []


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(bytes)` mounts a file system of that size; the next call changes the size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def resize(size):
        options = f"size={size},mode=700" + (",remount" if mounted else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip() or done.returncode}")
        mounted.append(place)
        return place

    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting a small file system takes root")
    yield resize
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def disk_use(folder):
    """Bytes in whole pages, as a tmpfs counts them."""
    return sum(disk_use_of(path) for path in folder.rglob("*") if path.is_file())


def disk_use_of(file):
    return -(-file.stat().st_size // 4096) * 4096


def test_a_full_file_system(home, small_disk, capsys):
    """Space for two and a half checkpoints: the run ends after three failed saves, and resumes with more space."""
    size = disk_use(home / "whole" / "checkpoint-4")
    later = sum(disk_use(path) for path in (home / "whole").glob("checkpoint-*"))
    later += disk_use_of(home / "whole/report.html")
    rest = disk_use(home / "whole") - later
    out = small_disk(rest + size * 5 // 2) / "out"
    assert "max_failed_saves" in error_line(capsys, trained, home, out, code=1)
    assert not list(out.glob(".saving-*"))
    assert steps_of(out) == [2, 4] and all(manifest.verify(path) is None for path in out.glob("checkpoint-*"))
    small_disk(rest + size * 20)
    resumed(home, out)
    assert differences(home / "whole", out) == []


# ---- clocks ----


def test_a_clock_that_runs_backwards(home, stopped, capsys, monkeypatch):
    """Steps decide which checkpoint is newest, not times."""
    now = [2e9]

    def backwards():
        now[0] -= 60
        return now[0]

    for age, step in enumerate(steps_of(stopped)):
        os.utime(stopped / f"checkpoint-{step}", (2e9 - 1e6 * age, 2e9 - 1e6 * age))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", backwards)
        resumed(home, stopped, "--save_total_limit", "2")
    assert f"resuming from {stopped / 'checkpoint-10'}" in capsys.readouterr().out
    assert steps_of(stopped) == [10, 12] and differences(home / "whole", stopped) == []
