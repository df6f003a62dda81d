"""Two processes on a CPU, as `accelerate launch` starts them: one schedule, one decision, one set of files."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from demonstration_files import write_act_episode
from safetensors.torch import load_file

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
LAUNCH = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


@pytest.mark.slow
def test_schedule_averages_and_best_checkpoints_with_two_processes(tmp_path, in_root):
    (tmp_path / "episodes").mkdir()
    for index in range(4):
        write_act_episode(tmp_path / "episodes" / f"episode_{index}.hdf5", steps=20, seed=index)
    data = f"dataset: {{path: {tmp_path / 'episodes'}, chunk_size: 5, eval_fraction: 0.25}}\n"
    (tmp_path / "recipe.yaml").write_text(RECIPE + data)
    port = str(20000 + os.getpid() % 10000)

    def launch(out, *more):
        words = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "--main_process_port", port, "train.py"]
        words += ["--training_config", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / out), *more]
        done = subprocess.run(words, cwd=in_root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

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
