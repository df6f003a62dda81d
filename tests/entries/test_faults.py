"""What may befall a run's folder between two of its starts, and the disk under it while it trains.

Whatever it is, the run ends as the undisturbed one: compared are weights, optimizer, averages, generators and metrics.
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
from trainer.callbacks import progress
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
    """A data set, a training file, and in `whole` the undisturbed run."""
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
    """The run as a power failure leaves it in its eleventh step: checkpoints 2 to 10, no final model."""
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
    """A file that is a link to its own content elsewhere."""
    shutil.move(folder / "optimizer.safetensors", folder.parent / "moved")
    (folder / "optimizer.safetensors").symlink_to("../moved")


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def rewritten(folder):
    """As many bytes, still YAML, another run."""
    path, (was, now) = folder / "run.yaml", (b"\nseed: 42", b"\nseed: 43")
    assert was in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(was, now))


HARM = {
    "cut model": (lambda folder: cut(folder / "model.safetensors"), "has a truncated model.safetensors"),
    "cut optimizer": (lambda folder: cut(folder / "optimizer.safetensors"), "has a truncated optimizer.safetensors"),
    "cut state": (lambda folder: cut(folder / "trainer_state.json"), "has a truncated trainer_state.json"),
    "cut configuration": (lambda folder: cut(folder / "run.yaml"), "has a truncated run.yaml"),
    "flipped in the model": (lambda folder: flip(folder / "model.safetensors"), "has a damaged model.safetensors"),
    "flipped in the averages": (lambda folder: flip(folder / "ema.safetensors"), "has a damaged ema.safetensors"),
    "flipped in the moments": (lambda folder: flip(folder / "optimizer.safetensors"), "has a damaged optimizer.saf"),
    "flipped in the schedule": (lambda folder: flip(folder / "scheduler.json", 20), "has a damaged scheduler.json"),
    "flipped in the generators": (lambda folder: flip(folder / "rng-0.json", 60), "has a damaged rng-0.json"),
    "flipped in the configuration": (lambda folder: flip(folder / "run.yaml", 40), "has a damaged run.yaml"),
    "another configuration": (rewritten, "has a damaged run.yaml"),
    "no model": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "no optimizer": (lambda folder: (folder / "optimizer.json").unlink(), "has no optimizer.json"),
    "no schedule": (lambda folder: (folder / "scheduler.json").unlink(), "has no scheduler.json"),
    "no generators": (lambda folder: (folder / "rng-0.json").unlink(), "has no rng-0.json"),
    "an empty folder": (emptied, "has no manifest.json"),
    "no manifest": (lambda folder: (folder / manifest.NAME).unlink(), "has no manifest.json"),
    "a cut manifest": (lambda folder: cut(folder / manifest.NAME), "has a damaged manifest.json"),
    "an empty manifest": (lambda folder: os.truncate(folder / manifest.NAME, 0), "has a damaged manifest.json"),
    "a manifest that points upwards": (points_at("../secret"), "which is no file of its folder"),
    "a manifest that points anywhere": (points_at(None), "which is no file of its folder"),
    "a link out of the folder": (linked, "has optimizer.safetensors as a link"),
}


@pytest.mark.parametrize("name", HARM)
def test_a_harmed_newest_checkpoint_is_passed_over_and_written_anew(home, stopped, capsys, name):
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


def test_whole_checkpoints_are_taken(home, stopped, capsys):
    """The tests above would not notice a run that never takes the newest."""
    resumed(home, stopped)
    shown = capsys.readouterr().out
    assert f"resuming from {stopped / 'checkpoint-10'}" in shown and "skipping" not in shown
    assert differences(home / "whole", stopped) == []


def test_two_harmed_ones(home, stopped, capsys):
    flip(stopped / "checkpoint-10" / "model.safetensors")
    cut(stopped / "checkpoint-8" / "optimizer.safetensors")
    resumed(home, stopped)
    shown = capsys.readouterr().out
    assert f"resuming from {stopped / 'checkpoint-6'}" in shown
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("skipping")] == [
        "skipping checkpoint-10",
        "skipping checkpoint-8",
    ]
    assert differences(home / "whole", stopped) == []


def harm_all(stopped):
    for step in steps_of(stopped):
        flip(stopped / f"checkpoint-{step}" / "model.safetensors")


def test_all_harmed_auto_starts_afresh_and_says_so(home, stopped, capsys):
    harm_all(stopped)
    resumed(home, stopped)
    shown = capsys.readouterr().out
    assert "resuming" not in shown
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("skipping")] == [
        f"skipping checkpoint-{step}" for step in (10, 8, 6, 4, 2)
    ]
    assert differences(home / "whole", stopped) == []


def refused(capsys, home, out, *words):
    """The one line of a run that is refused before it begins."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        trained(home, out, *words)
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    return lines[0]


def test_all_harmed_newest_refuses(home, stopped, capsys):
    harm_all(stopped)
    assert "holds no whole checkpoint" in refused(capsys, home, stopped, "--resume_from_checkpoint", "newest")


NAMED = ("cut optimizer", "flipped in the moments", "another configuration", "a manifest that points upwards")


@pytest.mark.parametrize("name", NAMED)
def test_a_harmed_checkpoint_that_is_named_is_refused(home, stopped, capsys, name):
    harm, text = HARM[name]
    harm(stopped / "checkpoint-10")
    line = refused(capsys, home, stopped, "--resume_from_checkpoint", str(stopped / "checkpoint-10"))
    assert text in line and "checkpoint-10" in line


def test_a_harmed_final_model_is_written_anew(home, stopped, capsys):
    shutil.rmtree(stopped)
    shutil.copytree(home / "whole", stopped, symlinks=True)
    flip(stopped / "model.safetensors")
    resumed(home, stopped)
    assert "nothing is left to train" in capsys.readouterr().out
    assert differences(home / "whole", stopped) == []


# ---- another run ----


@pytest.mark.parametrize("shared", ["output_dir", "checkpointing.dirpath"])
def test_a_folder_in_which_another_run_trains(home, tmp_path, capsys, shared):
    out, theirs = tmp_path / "out", tmp_path / ("out" if shared == "output_dir" else "checkpoints")
    code = "import sys, time\nfrom pathlib import Path\nfrom storage.lock import RunLock\n"
    code += "RunLock(Path(sys.argv[1])).take()\nprint('held', flush=True)\ntime.sleep(300)\n"
    more = [] if shared == "output_dir" else ["--set", f"checkpointing.dirpath={theirs}"]
    words = [sys.executable, "-c", code, str(theirs)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        line = refused(capsys, home, out, *more)
        assert f"{theirs} is in use: process {process.pid} on " in line and "--output_dir" in line
        assert process.poll() is None and sorted(os.listdir(theirs)) == [".run.lock"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    trained(home, out, *more)  # its lock is left behind, and no longer in the way
    assert differences(home / "whole", out) == []


# ---- the disk, while a run trains ----


@contextlib.contextmanager
def failing(monkeypatch, owner, name, error, at):
    """`owner.name` raises `error` in those saves, counted from one by their manifests, staged folders or tensors."""
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
NUMBERS = {"ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, "EROFS": errno.EROFS, "EACCES": errno.EACCES}


def disk_error(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("place", "number", "background"),
    [
        ("tensors", "ENOSPC", "true"),
        ("tensors", "EDQUOT", "false"),
        ("manifest", "EDQUOT", "true"),
        ("manifest", "ENOSPC", "false"),
        ("rename", "EROFS", "true"),
        ("rename", "EACCES", "false"),
    ],
)
def test_a_save_that_fails_does_not_end_the_training(home, tmp_path, capsys, monkeypatch, place, number, background):
    """One loud line; the checkpoint before it stays although the limit would let it go; the next save counts anew."""
    out = tmp_path / "out"
    more = ["--save_total_limit", "1", "--set", f"save_in_background={background}", "--set", "max_failed_saves=2"]
    with failing(monkeypatch, *PLACES[place], disk_error(NUMBERS[number]), at={4, 8}) as seen:
        trained(home, out, *more)
    assert sorted(set(seen)) == [4, 8]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ERROR")]
    assert [line.split()[1] for line in lines] == ["checkpoint-4", "checkpoint-8"]
    for line, kept in zip(lines, ("checkpoint-2", "checkpoint-6"), strict=True):
        assert os.strerror(NUMBERS[number]) in line and kept in line and "Training goes on" in line
    assert steps_of(out) == [12] and differences(home / "whole", out) == []


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_disk_that_is_slower_than_the_training(home, tmp_path, monkeypatch, background):
    """Each save is still under way when the next is due: none is left out, callbacks hear of every one, in turn."""

    def slowly(staged, final):
        time.sleep(0.2)
        real(staged, final)

    def heard(self, args, state, control, **kwargs):
        told.append(state.global_step)
        hear(self, args, state, control, **kwargs)

    real, hear, told = async_writer.publish, ModelCheckpoint.on_save, []
    monkeypatch.setattr(async_writer, "publish", slowly)
    monkeypatch.setattr(ModelCheckpoint, "on_save", heard)
    out = tmp_path / "out"
    trained(home, out, "--save_total_limit", "2", "--set", f"save_in_background={background}")
    assert told == [2, 4, 6, 8, 10, 12]
    assert steps_of(out) == [10, 12] and differences(home / "whole", out) == []


def test_the_first_save_fails(home, tmp_path, capsys, monkeypatch):
    """There is no last good checkpoint yet."""
    out = tmp_path / "out"
    with failing(monkeypatch, *PLACES["rename"], disk_error(errno.ENOSPC), at={2}):
        trained(home, out)
    assert "there is none yet" in capsys.readouterr().err
    assert steps_of(out) == [4, 6, 8, 10, 12] and differences(home / "whole", out) == []


@pytest.mark.parametrize("background", ["true", "false"])
def test_too_many_saves_in_a_row_end_it(home, tmp_path, capsys, monkeypatch, background):
    out, more = tmp_path / "out", ["--set", f"save_in_background={background}"]
    with (
        failing(monkeypatch, *PLACES["tensors"], disk_error(errno.ENOSPC), at={4, 6, 8, 10, 12}) as seen,
        pytest.raises(SystemExit) as left,
    ):
        trained(home, out, *more)
    assert left.value.code == 1 and sorted(set(seen)) == [4, 6, 8]
    shown = capsys.readouterr().err
    assert shown.count("ERROR:") == 3 and "3 checkpoints in a row could not be saved" in shown
    assert "Traceback" not in shown and "max_failed_saves" in shown.splitlines()[-1]
    assert steps_of(out) == [2] and not list(out.glob(".saving-*")) and not (out / ".run.lock").exists()
    assert manifest.verify(out / "checkpoint-2") is None
    resumed(home, out, *more)
    assert f"resuming from {out / 'checkpoint-2'}" in capsys.readouterr().out
    assert differences(home / "whole", out) == []


def test_a_mistake_of_the_program_is_no_failed_save(home, tmp_path, monkeypatch):
    """It ends the run with its traceback, in the background too."""
    with (
        failing(monkeypatch, *PLACES["manifest"], ZeroDivisionError("a mistake"), at={4}),
        pytest.raises(ZeroDivisionError, match="a mistake"),
    ):
        trained(home, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".saving-*"))
    monkeypatch.undo()
    resumed(home, tmp_path / "out")
    assert differences(home / "whole", tmp_path / "out") == []


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(bytes)`: a file system of that size; called again, of another size."""
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
    """Bytes in pages, which is how a tmpfs counts."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def test_a_disk_that_is_really_full(home, small_disk, capsys):
    """Room for two checkpoints and a half: the third fails, as do those after it, and the run ends; given room, the
    same command goes on."""
    each = disk_use(home / "whole" / "checkpoint-4")
    rest = disk_use(home / "whole") - sum(disk_use(path) for path in (home / "whole").glob("checkpoint-*"))
    out = small_disk(rest + each * 5 // 2) / "out"
    with pytest.raises(SystemExit) as left:
        trained(home, out)
    shown = capsys.readouterr().err
    assert left.value.code == 1 and shown.count("ERROR:") == 3 and "No space left on device" in shown, shown
    assert "Traceback" not in shown and not list(out.glob(".saving-*"))
    assert steps_of(out) == [2, 4] and all(manifest.verify(path) is None for path in out.glob("checkpoint-*"))
    small_disk(rest + each * 20)
    resumed(home, out)
    assert differences(home / "whole", out) == []


def test_a_disk_without_room_for_a_line(home, small_disk, capsys):
    """Logs cannot be written either: the lines that are lost are written again when the run goes on."""
    each = disk_use(home / "whole" / "checkpoint-4")
    rest = disk_use(home / "whole") - sum(disk_use(path) for path in (home / "whole").glob("checkpoint-*"))
    place = small_disk(rest + each * 5)
    real = async_writer.publish

    def fill_after_two(staged, final):
        real(staged, final)
        if final.name == "checkpoint-4":
            with open(place / "ballast", "wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
                    file.flush()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(async_writer, "publish", fill_after_two)
        trained(home, place / "out")
    shown = capsys.readouterr().err
    assert left.value.code == 1 and "Traceback" not in shown, shown
    assert manifest.verify(place / "out" / "checkpoint-4") is None
    (place / "ballast").unlink()
    small_disk(rest + each * 20)
    resumed(home, place / "out")
    assert differences(home / "whole", place / "out") == []


def test_lines_wait_for_a_disk_that_takes_none(home, tmp_path, capsys, monkeypatch):
    """One line says so; none is missing or there twice when the disk takes them again."""

    def append(path, text):
        calls.append(text)
        if 3 < len(calls) < 8:
            raise disk_error(errno.ENOSPC)
        real(path, text)

    real, calls = progress.append, []
    monkeypatch.setattr(progress, "append", append)
    trained(home, tmp_path / "out")
    told = [line for line in capsys.readouterr().err.splitlines() if "metrics.jsonl" in line]
    assert len(told) == 1 and "No space left on device" in told[0]
    assert differences(home / "whole", tmp_path / "out") == []


# ---- clocks ----


def test_a_clock_that_goes_backwards(home, stopped, tmp_path, capsys, monkeypatch):
    """Steps decide what is newest and what is rotated, not times."""
    now = [2e9]

    def backwards():
        now[0] -= 60
        return now[0]

    for age, step in enumerate(steps_of(stopped)):
        os.utime(stopped / f"checkpoint-{step}", (2e9 - 1e6 * age, 2e9 - 1e6 * age))  # the newest looks the oldest
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", backwards)
        resumed(home, stopped, "--save_total_limit", "2")
    assert f"resuming from {stopped / 'checkpoint-10'}" in capsys.readouterr().out
    assert steps_of(stopped) == [10, 12] and differences(home / "whole", stopped) == []
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", backwards)
        trained(home, tmp_path / "new", "--save_total_limit", "2")
    assert steps_of(tmp_path / "new") == [10, 12] and differences(home / "whole", tmp_path / "new") == []
