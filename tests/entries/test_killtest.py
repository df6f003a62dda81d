"""`python -m trainer.killtest` passes for a correct training program and fails for an incorrect one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_sets import write_set

from storage import manifest
from trainer import killtest
from trainer.run_differences import differences, metric_differences

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = """\
model_config: gpt
model: {n_layer: 1, n_head: 2, n_embd: 16, dropout: 0.1}
dataset: {name: text, path: SET, block_size: 16}
max_steps: 48
save_steps: 8
save_total_limit: 3
eval_steps: 24
logging_steps: 3
learning_rate: 0.01
gradient_accumulation_steps: 2
per_device_train_batch_size: 4
per_device_eval_batch_size: 4
limit_val_batches: 2
sample_tokens: 0
using_ema: true
report_to: none
report: false
"""


# ---- train.py ----


@pytest.mark.slow
def test_a_kill_loses_nothing(tmp_path):
    write_set(tmp_path / "set")
    (tmp_path / "tiny.yaml").write_text(TINY.replace("SET", str(tmp_path / "set")))
    words = ["--training_config", str(tmp_path / "tiny.yaml"), "--kills", "1", "--output_dir", str(tmp_path / "runs")]
    done = command(*words, "--set", f"checkpointing.dirpath={tmp_path / 'shared'}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[1] for line in lines if line.startswith("kill ")] == ["1/1"]
    assert lines[-1].startswith("passed: 1 kills")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "shared").exists()


def command(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "trainer.killtest", *map(str, words)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_refused_flags(tmp_path):
    (tmp_path / "used" / "whole").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for words, key in (
        (["--kills", "0"], "--kills"),
        (["--lerning_rate", "1"], "--learning_rate"),
        (["--training_config", tmp_path / "gone.yaml"], "gone.yaml"),
        (["--resume_from_checkpoint", "auto"], "--resume_from_checkpoint"),
        (["--output_dir", tmp_path / "used"], "used"),
        (["--output_dir", tmp_path / "file"], "file"),
    ):
        done = command(*words)
        assert done.returncode == 2 and key in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert command("--help").stdout.startswith("usage: python -m trainer.killtest")


# ---- a replacement for train.py with a bug ----

TRAINING = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from storage import manifest
from storage.atomic import publish

if "--print_config" in sys.argv:
    print("{{}}")
    raise SystemExit(0)
out, bug = Path(sys.argv[sys.argv.index("--output_dir") + 1]), {bug!r}
out.mkdir(parents=True, exist_ok=True)
killed = out.name != "whole"
saved = sorted(int(path.name[11:]) for path in out.glob("checkpoint-*"))
first = saved[-1] if saved and "--resume_from_checkpoint" in sys.argv else 0
if bug == "starts from 0":
    first = 0
if bug == "loses the newest" and first:
    (out / f"checkpoint-{{first}}").rename(out / f"gone-{{time.time()}}")
if bug == "fails" and first:
    raise SystemExit("cannot resume")
for path in out.glob(".saving-*"):
    __import__("shutil").rmtree(path)
if first:
    print(f"resuming from checkpoint-{{first}}", flush=True)
path = out / "metrics.jsonl"
lines = path.read_text().splitlines(keepends=True) if path.exists() else []
kept = [line for line in lines if line.endswith("\\n") and json.loads(line)["step"] <= first]
if bug == "repeats lines" and killed:
    kept = lines
path.write_text("".join(kept))


def tensors(step):
    header = json.dumps({{"w": {{"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}}}).encode()
    wrong = bug == "other weights" and killed and first
    return len(header).to_bytes(8, "little") + header + bytes([step + bool(wrong)])


def save(step):
    final = out / f"checkpoint-{{step}}"
    staged = final if bug == "in place" and killed else out / f".saving-checkpoint-{{step}}.h.{{os.getpid()}}"
    staged.mkdir()
    (staged / "model.safetensors").write_bytes(tensors(step))
    time.sleep(0.03)
    manifest.write(staged, step=step, world_size=1)
    time.sleep(0.01)
    if staged != final:
        publish(staged, final)


for step in range(first + 1, 41):
    time.sleep(0.01)
    with open(path, "a") as file:
        file.write(json.dumps({{"step": step, "loss": 1 / step, "step_ms": time.time()}}) + "\\n")
    if step % 5 == 0:
        save(step)
(out / "model.safetensors").write_bytes(tensors(40))
manifest.write(out, step=40, world_size=1, names=["model.safetensors"])
if bug == "leaves a staging" and killed:
    (out / ".saving-checkpoint-40.h.1").mkdir()
"""


@pytest.fixture
def replacement(tmp_path, monkeypatch):
    """`replacement(bug, …)`: the exit code of a kill test of a program with that bug."""

    def run(bug=None, *words, kills=8):
        (tmp_path / "train.py").write_text(TRAINING.format(root=str(ROOT), bug=bug))
        monkeypatch.setattr(killtest, "TRAIN", tmp_path / "train.py")
        monkeypatch.setattr(killtest, "EXIT_SIGNALS", ())
        return killtest.main(["--kills", str(kills), "--output_dir", str(tmp_path / "runs"), *words])

    return run


@pytest.mark.slow
def test_a_correct_training_passes(replacement, tmp_path, capsys):
    assert replacement(None, "--keep", kills=12) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("passed: 12 kills") and "kept in" in lines[-1]
    kills = [line for line in lines if line.startswith("kill ")]
    assert len(kills) == 12 and any("while saving" in line for line in kills)
    assert any("resumes from" in line for line in kills)
    assert (tmp_path / "runs" / "whole" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "text"),
    {
        "other weights": "safetensors differs",
        "repeats lines": "repeats . of step",
        "in place": "has no manifest.json",
        "loses the newest": "is lost",
        "starts from 0": "did not resume from|lacks . of step",
        "fails": "ended with exit code 1: cannot resume",
        "leaves a staging": "is left",
    }.items(),
)
def test_a_bug_is_detected(replacement, tmp_path, capsys, bug, text):
    assert replacement(bug, kills=25) == 1
    shown = capsys.readouterr().out
    assert re.search(text, shown), shown
    assert shown.splitlines()[-1].startswith("FAILED") and str(tmp_path / "runs") in shown
    assert (tmp_path / "runs" / "whole").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_run_outlives_the_test(tmp_path, number):
    """A program that takes a minute ends with the kill test, and nothing is left."""
    pid_file = tmp_path / "pid"
    training = "import os, sys, time\nif '--print_config' in sys.argv: print('{}'); raise SystemExit\n"
    training += f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    (tmp_path / "train.py").write_text(training)
    code = "import sys\nfrom pathlib import Path\nfrom trainer import killtest\n"
    code += f"killtest.TRAIN = Path({str(tmp_path / 'train.py')!r})\nsys.exit(killtest.main(sys.argv[1:]))\n"
    words = [sys.executable, "-c", code, "--output_dir", str(tmp_path / "runs")]
    process = subprocess.Popen(words, cwd=ROOT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (pid_file.exists() and pid_file.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert not (tmp_path / "runs").exists()


# ---- comparison of two runs ----


@pytest.fixture
def pair(tmp_path):
    """Two equal runs."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    folder = whole / "checkpoint-8"
    folder.mkdir(parents=True)
    tensors = {"a": torch.arange(4.0), "b": torch.tensor([float("nan")], dtype=torch.bfloat16)}
    for place in (whole, folder):
        save_file(tensors, place / "model.safetensors")
    save_file({"0.exp_avg": torch.ones(3)}, folder / "optimizer.safetensors")
    (folder / "scheduler.json").write_text("{}")
    (folder / "trainer_state.json").write_text('{"train_runtime": 1}')
    write_metrics(whole, LINES)
    shutil.copytree(whole, killed)
    for run in (whole, killed):
        write_manifests(run)
    return whole, killed


LINES = [{"step": step, "loss": 1 / step, "step_ms": step} for step in (2, 4, 6, 8)]
LINES += [{"step": 4, "eval_loss": 0.5, "eval_runtime": 1.0}, {"step": 8, "train_runtime": 3.0, "train_loss": 1}]


def write_metrics(run, lines):
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_manifests(run):
    """Manifests of the current files: differences are not found by hashes."""
    manifest.write(run / "checkpoint-8", step=8, world_size=1)
    manifest.write(run, step=8, world_size=1, names=["model.safetensors"])


def test_equal_runs(pair):
    whole, killed = pair
    assert differences(whole, killed) == []
    times = [line | {"step_ms": 7, "tokens_per_second": 9.0, "peak_memory_mb": 1} for line in LINES[:-1]]
    write_metrics(killed, times)  # the summary at the end may be missing
    (killed / "checkpoint-8" / "trainer_state.json").write_text('{"train_runtime": 2}')
    write_manifests(killed)
    assert differences(whole, killed) == []


@pytest.mark.parametrize("place", [".", "checkpoint-8"])
def test_a_changed_tensor(pair, place):
    whole, killed = pair
    path = killed / place / "model.safetensors"
    tensors = load_file(path)
    tensors["a"][3] = torch.nextafter(tensors["a"][3], torch.tensor(9.0))
    save_file(tensors, path)
    write_manifests(killed)
    assert differences(whole, killed) == [f"{(killed / place).resolve().name}/model.safetensors differs"]


def test_changed_missing_and_additional_files(pair):
    whole, killed = pair
    (killed / "checkpoint-8" / "scheduler.json").write_text('{"step": 1}')
    (killed / "checkpoint-8" / "optimizer.safetensors").rename(killed / "checkpoint-8" / "rng-0.json")
    write_manifests(killed)
    lines = differences(whole, killed)
    assert len(lines) == 3
    for line, name in zip(lines, ("optimizer.safetensors", "rng-0.json", "scheduler.json"), strict=True):
        assert "checkpoint-8" in line and name in line


METRICS = {
    "repeated": ([*LINES, LINES[1]], "repeats 1 of step 4"),
    "missing": ([*LINES[:2], *LINES[3:]], "lacks 1 of step 6"),
    "another order": ([LINES[1], LINES[0], *LINES[2:]], "step 4: step is 4, not 2"),
    "another value": ([*LINES[:3], LINES[3] | {"loss": 0.1250000000000001}, *LINES[4:]], "step 8: loss is 0.125"),
}


@pytest.mark.parametrize("name", METRICS)
def test_changed_metrics(pair, name):
    whole, killed = pair
    lines, text = METRICS[name]
    write_metrics(killed, lines)
    assert any(text in line for line in metric_differences(whole, killed))
    assert metric_differences(whole, killed, before=4) == []


def test_lines_that_are_not_json(pair):
    whole, killed = pair
    for text, count in (('{"step": 9, "lo', 0), ("\n3\n", 1)):  # the first one is still being written
        with open(killed / "metrics.jsonl", "a") as file:
            file.write(text)
        assert len(metric_differences(whole, killed)) == count


def test_incomplete_and_left_over(pair):
    whole, killed = pair
    for name in (".saving-checkpoint-9.h.1", ".deleting-checkpoint-7", "checkpoint-9"):
        (killed / name).mkdir()
    for name in (".run.lock", ".metrics.jsonl.12.tmp"):
        (killed / name).write_text("")
    (killed / manifest.NAME).unlink()
    left = (".deleting-checkpoint-7", ".metrics.jsonl.12.tmp", ".run.lock", ".saving-checkpoint-9.h.1")
    expected = [f"killed: {name} is left" for name in left]
    assert differences(whole, killed) == [
        *expected, "checkpoint-9 has no manifest.json", "the final model has no manifest.json"
    ]  # fmt: skip
    shutil.rmtree(killed / "checkpoint-8")
    assert "the newest complete checkpoint is of step None, not 8" in differences(whole, killed)
