"""Two processes on a CPU: one schedule, one decision, one set of files.

They are started by torch's launcher: `accelerate launch --cpu --num_processes 2` starts a single process.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from demonstration_files import write_act_episode
from safetensors.torch import load_file
from text_sets import SMALL, write_set

import train

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = """
model_config: act
model: {hidden_dim: 16, num_heads: 2, feedforward_dim: 16, cvae_layers: 1, encoder_layers: 1}
using_ema: true
ema: {decay: 0.5}
gradient_accumulation_steps: 2
scheduler: {name: StepLR, step_size: 2, gamma: 0.5, interval: step}
early_stopping: {monitor: val/loss, patience: 3}
checkpointing: {monitor: [val_loss], save_top_k: 2, every_n_epochs: 0}
max_steps: 6
eval_steps: 2
logging_steps: 1
warmup_steps: 2
learning_rate: 0.01
per_device_train_batch_size: 4
report_to: none
"""


def launched(port, *words):
    """`train.py WORDS` in two processes; what they printed."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*start, "train.py", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_schedule_averages_and_best_checkpoints_with_two_processes(tmp_path, in_root):
    (tmp_path / "episodes").mkdir()
    for index in range(4):
        write_act_episode(tmp_path / "episodes" / f"episode_{index}.hdf5", steps=20, seed=index)
    data = f"dataset: {{path: {tmp_path / 'episodes'}, chunk_size: 5, eval_fraction: 0.25}}\n"
    (tmp_path / "recipe.yaml").write_text(RECIPE + data)
    port = str(20000 + os.getpid() % 10000)

    def launch(out, *more):
        recipe = str(tmp_path / "recipe.yaml")
        return launched(port, "--training_config", recipe, "--output_dir", str(tmp_path / out), *more)

    shown = launch("whole")
    whole = tmp_path / "whole"
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.01, 0.005, 0.005])  # by hand: warm-up, then halved every 2 steps
    assert shown.count("learning rate schedule") == 1  # one process speaks for all
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4, 6]
    kept = {path.name for path in whole.glob("checkpoint-*")}
    best = sorted((line["eval_loss"], line["step"]) for line in lines if "eval_loss" in line)[:2]
    assert kept == {f"checkpoint-{step}" for _, step in best} | {"checkpoint-6"}
    averaged = load_file(whole / "model.safetensors")
    stored = load_file(whole / "checkpoint-6/ema.safetensors")
    assert all(torch.equal(stored[f"shadow.{name}"], averaged[name]) for name in averaged if f"shadow.{name}" in stored)

    shutil.copytree(whole, tmp_path / "parts", symlinks=True)
    earlier = min(kept, key=lambda name: int(name[11:]))
    for name in kept - {earlier}:
        shutil.rmtree(tmp_path / "parts" / name)
    launch("parts", "--resume_from_checkpoint", "auto")
    again = load_file(tmp_path / "parts" / "model.safetensors")
    assert all(torch.equal(again[name], averaged[name]) for name in averaged)


@pytest.mark.slow
def test_text_on_two_processes(tmp_path, in_root, monkeypatch):
    """Each takes its half of what one process would take in batches twice the size; resumed, they end the same."""
    monkeypatch.setenv("KEEL_HOME", str(tmp_path / "home"))
    for seed, name in enumerate("ab"):
        write_set(tmp_path / "home" / "datasets" / name, seed)
    port = str(20000 + os.getpid() % 10000)
    small = SMALL.replace("--max_sample_tokens 4", "--grad_clip 0.5").split()

    def launch(out, words, processes=2):
        words = ["--out_dir", str(tmp_path / out), *words]
        launched(port, *words) if processes > 1 else train.main(words)
        return load_file(tmp_path / out / "model.safetensors")

    two = launch("two", ["--dataset", "a", *small])
    doubled = [{"4": "8"}.get(word, word) if small[at - 1] == "--batch_size" else word for at, word in enumerate(small)]
    one = launch("one", ["--dataset", "a", *doubled], processes=1)
    assert all(torch.allclose(two[name], one[name], atol=1e-5) for name in one)
    separate = ["--training_mode", "multidataset", "--dataset_list", "a", "b", "--multidataset_wte", *small]
    whole = launch("separate", separate)
    shutil.rmtree(tmp_path / "separate" / "checkpoint-6")
    (tmp_path / "separate" / "model.safetensors").unlink()
    resumed = launch("separate", ["--init_from", "resume"])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
