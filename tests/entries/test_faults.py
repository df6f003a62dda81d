"""Damage to a run's folder between two starts, and disks that fail while it trains.

The run must end like the uninterrupted one: weights, optimizer, EMA, generators and metrics are compared.
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
from text_sets import write_set

import train
from storage import manifest
from trainer.callbacks.model_checkpoint import ModelCheckpoint
from trainer.checkpointing import async_writer
from trainer.serialization import state_dict_io
from trainer.tools.run_differences import differences

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


def points_at(name):
    """A manifest that names a file outside, with its true size and hash."""

    def harm(folder):
        secret = folder.parent / "secret"
        secret.write_text("secret")
        path = folder / manifest.NAME
        edit(path, lambda content: content["files"].update({name or str(secret): manifest.entry(secret)}))

    return harm


def linked(folder):
    """A symlink to the file's content elsewhere."""
    shutil.move(folder / "optimizer.safetensors", folder.parent / "moved")
    (folder / "optimizer.safetensors").symlink_to("../moved")


def rewritten(folder):
    """Still YAML of the same length, but another run."""
    path, (was, now) = folder / "run.yaml", (b"\nseed: 42", b"\nseed: 43")
    assert was in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(was, now))


HARM = {
    "cut model": (lambda folder: cut(folder / "model.safetensors"), "has a truncated model.safetensors"),
    "flipped in the model": (lambda folder: flip(folder / "model.safetensors"), "has a damaged model.safetensors"),
    "another configuration": (rewritten, "has a damaged run.yaml"),
    "no optimizer": (lambda folder: (folder / "optimizer.json").unlink(), "has no optimizer.json"),
    "no manifest": (lambda folder: (folder / manifest.NAME).unlink(), "has no manifest.json"),
    "a manifest that points upwards": (points_at("../secret"), "not a file in its folder"),
    "a link out of the folder": (linked, "symlink"),
}


@pytest.mark.parametrize("name", HARM)
def test_a_damaged_newest_checkpoint_is_passed_over(home, stopped, capsys, name):
    harm, text = HARM[name]
    harm(stopped / "checkpoint-10")
    capsys.readouterr()
    resumed(home, stopped)
    shown = capsys.readouterr().out
    assert f"resuming from {stopped / 'checkpoint-8'}" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("skipping"))
    assert line.startswith("skipping checkpoint-10: it ") and text in line
    assert differences(home / "whole", stopped) == []
    assert steps_of(stopped) == steps_of(home / "whole")


def test_an_intact_newest_checkpoint_is_taken(home, stopped, capsys):
    resumed(home, stopped)
    shown = capsys.readouterr().out
    assert f"resuming from {stopped / 'checkpoint-10'}" in shown and "skipping" not in shown
    assert differences(home / "whole", stopped) == []


def damage_all(stopped):
    for step in steps_of(stopped):
        flip(stopped / f"checkpoint-{step}" / "model.safetensors")


def test_auto_starts_a_new_run_if_all_checkpoints_are_damaged(home, stopped, capsys):
    damage_all(stopped)
    resumed(home, stopped)
    shown = capsys.readouterr().out
    assert "resuming" not in shown
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("skipping")] == [
        f"skipping checkpoint-{step}" for step in (10, 8, 6, 4, 2)
    ]
    assert differences(home / "whole", stopped) == []


def refused(capsys, home, out, *words):
    """The error line of a run that does not start; no file changes."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        trained(home, out, *words)
    lines = capsys.readouterr().err.splitlines()
    assert error.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    return lines[0]


def test_newest_refuses_if_all_checkpoints_are_damaged(home, stopped, capsys):
    damage_all(stopped)
    assert "newest" in refused(capsys, home, stopped, "--resume_from_checkpoint", "newest")


NAMED = ("cut model", "another configuration", "a manifest that points upwards")


@pytest.mark.parametrize("name", NAMED)
def test_a_damaged_checkpoint_that_is_named_is_refused(home, stopped, capsys, name):
    harm, text = HARM[name]
    harm(stopped / "checkpoint-10")
    line = refused(capsys, home, stopped, "--resume_from_checkpoint", str(stopped / "checkpoint-10"))
    assert text in line and "checkpoint-10" in line


def test_a_damaged_final_model_is_written_again(home, stopped, capsys):
    shutil.rmtree(stopped)
    shutil.copytree(home / "whole", stopped, symlinks=True)
    flip(stopped / "model.safetensors")
    resumed(home, stopped)
    assert "nothing is left to train" in capsys.readouterr().out
    assert differences(home / "whole", stopped) == []


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
        line = refused(capsys, home, out, *more)
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


PLACES = {
    "tensors": (state_dict_io, "save_file"),
    "manifest": (async_writer.manifest, "write"),
    "rename": (async_writer, "publish"),
}
NUMBERS = {"ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, "EROFS": errno.EROFS}


def disk_error(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("place", "number", "background"),
    [
        ("tensors", "ENOSPC", "true"),
        ("manifest", "EDQUOT", "false"),
        ("rename", "EROFS", "true"),
    ],
)
def test_a_failed_save_does_not_end_training(home, tmp_path, capsys, monkeypatch, place, number, background):
    """The previous checkpoint stays despite the limit, and a successful save resets the count of failures."""
    out = tmp_path / "out"
    more = ["--save_total_limit", "1", "--set", f"save_in_background={background}", "--set", "max_failed_saves=2"]
    with failing(monkeypatch, *PLACES[place], disk_error(NUMBERS[number]), at={4, 8}) as seen:
        trained(home, out, *more)
    assert sorted(set(seen)) == [4, 8]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ERROR")]
    assert [line.split()[1] for line in lines] == ["checkpoint-4", "checkpoint-8"]
    for line, kept in zip(lines, ("checkpoint-2", "checkpoint-6"), strict=True):
        assert os.strerror(NUMBERS[number]) in line and kept in line
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


@pytest.mark.parametrize("background", ["true"])
def test_too_many_failed_saves_end_the_run(home, tmp_path, capsys, monkeypatch, background):
    out, more = tmp_path / "out", ["--set", f"save_in_background={background}"]
    with (
        failing(monkeypatch, *PLACES["tensors"], disk_error(errno.ENOSPC), at={4, 6, 8, 10, 12}) as seen,
        pytest.raises(SystemExit) as error,
    ):
        trained(home, out, *more)
    assert error.value.code == 1 and sorted(set(seen)) == [4, 6, 8]
    shown = capsys.readouterr().err
    assert shown.count("ERROR:") == 3
    assert "Traceback" not in shown and "max_failed_saves" in shown.splitlines()[-1]
    assert steps_of(out) == [2] and not list(out.glob(".saving-*")) and not (out / ".run.lock").exists()
    assert manifest.verify(out / "checkpoint-2") is None
    resumed(home, out, *more)
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
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True
        )
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
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def test_a_full_file_system(home, small_disk, capsys):
    """Space for two and a half checkpoints: the run ends after three failed saves, and resumes with more space."""
    each = disk_use(home / "whole" / "checkpoint-4")
    rest = disk_use(home / "whole") - sum(disk_use(path) for path in (home / "whole").glob("checkpoint-*"))
    out = small_disk(rest + each * 5 // 2) / "out"
    with pytest.raises(SystemExit) as error:
        trained(home, out)
    shown = capsys.readouterr().err
    assert error.value.code == 1 and shown.count("ERROR:") == 3 and "No space left on device" in shown, shown
    assert "Traceback" not in shown and not list(out.glob(".saving-*"))
    assert steps_of(out) == [2, 4] and all(manifest.verify(path) is None for path in out.glob("checkpoint-*"))
    small_disk(rest + each * 20)
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
